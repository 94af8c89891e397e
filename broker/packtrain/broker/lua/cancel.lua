-- Cancel a job: at once when it waits, by a flag that its instance sees within a second when it runs.
-- KEYS[1] job record   hash
-- ARGV[1] job id   ARGV[2] outcome of a cancelled job (JSON)
-- ARGV[3] 1: leave nothing of one that has not begun, so that its id may be used again
-- Returns the state afterwards, or false when there is no such job
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return false end
if state == 'QUEUED' then
  withdraw(ARGV[1])
  conclude(ARGV[1], 'CANCELLED', ARGV[2])  -- no instance has it, and clients may not touch leases
  if ARGV[3] == '1' and not redis.call('HGET', KEYS[1], 'epoch') then
    redis.call('DEL', KEYS[1], OUT_PREFIX .. ARGV[1])
    redis.call('ZREM', RECENT, ARGV[1])
  else
    count_end(ARGV[1], 'CANCELLED')
  end
  return 'CANCELLED'
end
if state == 'RUNNING' then redis.call('HSET', KEYS[1], 'cancel', 1) end
return state
