-- Where a waiting job stands. Changes nothing.
-- KEYS[1] job record   hash
-- ARGV[1] job id
-- Returns {jobs ahead in its lane, jobs of its lane, interactive jobs ahead of a bulk one, users with jobs in its lane,
-- jobs that its own user has there, id of the first job of the lane, attempts of that one}, or false when it does not wait
if redis.call('HGET', KEYS[1], 'state') ~= 'QUEUED' then return false end
local route, lane = place_of(ARGV[1])
local f = redis.call('HMGET', KEYS[1], 'model', 'user')
local ready, queued = ready_key(route, lane), queued_key(f[1], lane)
local rank = redis.call('ZRANK', ready, ARGV[1])
if not rank then return false end
local before = lane == 'bulk' and redis.call('ZCARD', ready_key(route, 'interactive')) or 0
local first = redis.call('ZRANGE', ready, 0, 0)[1]
return {
  rank, redis.call('ZCARD', ready), before, redis.call('HLEN', queued), redis.call('HGET', queued, f[2]) or 0, first,
  redis.call('HGET', JOB_PREFIX .. first, 'attempts') or 0
}
