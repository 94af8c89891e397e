-- Waiting jobs of a route that have further targets. Forgets those that wait there no more; changes nothing else.
-- KEYS[1], KEYS[2] ready sets, interactive, bulk   zset
-- KEYS[3], KEYS[4] their jobs with further targets zset
-- ARGV[1] at most so many of each lane from its end, and as many from its beginning
-- Returns {{id, lane, jobs ahead, ms waited, ms that it may wait or '', targets, failed ones}, ...}, last ones first
local LANES, now, limit, found = {'interactive', 'bulk'}, now_ms(), tonumber(ARGV[1]), {}
for lane = 1, 2 do
  local ready, movable = KEYS[lane], KEYS[lane + 2]
  local head = redis.call('ZRANGE', ready, 0, 0, 'WITHSCORES')
  if #head == 0 then
    redis.call('DEL', movable)
  else
    redis.call('ZREMRANGEBYSCORE', movable, '-inf', '(' .. head[2])
  end
  local ids, seen = redis.call('ZREVRANGE', movable, 0, limit - 1), {}
  if #ids == limit then
    local first = redis.call('ZRANGE', movable, 0, limit - 1)
    for i = #first, 1, -1 do ids[#ids + 1] = first[i] end
  end
  local before = lane == 2 and redis.call('ZCARD', KEYS[1]) or 0
  for _, id in ipairs(ids) do
    local rank = redis.call('ZRANK', ready, id)
    local f = redis.call('HMGET', JOB_PREFIX .. id, 'submitted_ms', 'spill_ms', 'targets', 'failed', 'tokens', 'state')
    if not rank or f[6] ~= 'QUEUED' or not f[3] then
      redis.call('ZREM', movable, id)
    elseif not seen[id] and tonumber(f[5] or '0') == 0 then
      seen[id] = true
      found[#found + 1] = {id, LANES[lane], rank + before, now - f[1], f[2] or '', f[3], f[4] or ''}
    end
  end
end
return found
