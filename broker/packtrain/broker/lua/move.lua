-- Let a waiting job without tokens wait for another of its targets.
-- KEYS[1] job record   hash
-- ARGV[1] job id   ARGV[2] route where it waits   ARGV[3] model that it goes to   ARGV[4] what makes the route of it
-- ARGV[5] why, for people (JSON)   ARGV[6] see fairness.py: what the clock moves on by
-- ARGV[7] 1: its target could not run it, and is not to be tried again
-- Returns 1 when it was moved, 0 when it waits there no more
local f = redis.call('HMGET', KEYS[1], 'state', 'tokens', 'targets', 'failed', 'model')
if f[1] ~= 'QUEUED' or not f[3] or tonumber(f[2] or '0') > 0 or place_of(ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[7] == '1' then redis.call('HSET', KEYS[1], 'failed', (f[4] and f[4] .. ' ' or '') .. f[5]) end
redis.call('HSET', KEYS[1], 'cause', ARGV[5])
withdraw(ARGV[1])
local _, lane = place_of(ARGV[1])
redis.call('ZREM', MOVABLE_PREFIX .. ARGV[2] .. ':' .. string.sub(lane, 1, 1), ARGV[1])
enqueue(ARGV[1], ARGV[3], ARGV[4], ARGV[6])
return 1
