"""Simulation: a fleet that exists on paper only, run with the policy of a real one.

fleet_file   nodes, models and streams of jobs, as a TOML file says them
arrivals     its jobs, one after another
service      how fast an instance works jobs off
parts        jobs, nodes and instances, and the beats that the planner reads
run          the events, on a clock of its own
outcome      what comes out
fitting      what fits together, what takes turns, what never fits
"""

from packtrain.broker.simulation.fitting import Fit, ModelFit, NodeFit, Pace, PaceOf, Place, as_it_is, fit, on_paper
from packtrain.broker.simulation.fleet_file import FleetFile, TraceLine, parse_fleet, parse_trace_line
from packtrain.broker.simulation.outcome import NodeUse, Outcome, Waits
from packtrain.broker.simulation.run import Simulation

__all__ = [
    "Fit",
    "FleetFile",
    "ModelFit",
    "NodeFit",
    "NodeUse",
    "Outcome",
    "Pace",
    "PaceOf",
    "Place",
    "Simulation",
    "TraceLine",
    "Waits",
    "as_it_is",
    "fit",
    "on_paper",
    "parse_fleet",
    "parse_trace_line",
]
