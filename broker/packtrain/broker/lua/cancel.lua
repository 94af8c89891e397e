-- Cancel a job: at once when it waits, by a flag that its instance sees within a second when it runs.
-- KEYS[1] job record   hash
-- ARGV[1] job id   ARGV[2] outcome of a cancelled job (JSON)
-- Returns the state afterwards, or false when there is no such job
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return false end
if state == 'QUEUED' then
  withdraw(ARGV[1])
  conclude(ARGV[1], 'CANCELLED', ARGV[2])  -- no instance has it, and clients may not touch leases
  return 'CANCELLED'
end
if state == 'RUNNING' then redis.call('HSET', KEYS[1], 'cancel', 1) end
return state
