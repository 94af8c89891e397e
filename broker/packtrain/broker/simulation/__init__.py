"""Simulation: a fleet that does not exist, run by the planner and the fair queue of the real one, on a virtual clock.

What is the same code: `placement.plan` with all that the coordinator finds out for it, once a virtual second, and
`fairness.FairTags`, which orders the jobs of a model. Claims follow the same rules: interactive jobs first, bulk jobs
in all slots but the reserved ones, the lowest tag first. What is a model of the real thing: a load takes the seconds it
is said to take, a job its tokens at the rate that a slot has in a full batch; prefixes are not shared, nothing is
parked and nothing fails.

    fleet    what is known of nodes, models and jobs
    queues   the jobs that wait for one model
    units    instances
    world    the clock: arrivals, ends, ticks
    report   what came of it
    fitting  what fits together, without a clock
"""
