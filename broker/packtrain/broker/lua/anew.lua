-- Begin waiting jobs anew whose tokens are of a numerics class that no instance of their route computes in: nobody would
-- ever go on with them. Their tokens are dropped; whoever has read some sees the next chunk begin at 0 again.
-- KEYS[1] deterministic jobs that waited with tokens   hash, job id -> class
-- ARGV[1], ARGV[2] ...: route, class that is computed there, route, class ...
-- Jobs of routes that are not among these are left alone.
-- Returns {id, route, id, route ...}
local known, computed, changed = {}, {}, {}
for i = 1, #ARGV, 2 do
  known[ARGV[i]] = true
  computed[ARGV[i] .. ' ' .. ARGV[i + 1]] = true
end
local begun = redis.call('HGETALL', KEYS[1])
for i = 1, #begun, 2 do
  local id, class = begun[i], begun[i + 1]
  local job = JOB_PREFIX .. id
  local state, route = redis.call('HGET', job, 'state'), place_of(id)
  if not state then
    redis.call('HDEL', KEYS[1], id)
  elseif state == 'QUEUED' and known[route] and not computed[route .. ' ' .. class] then
    redis.call('HDEL', KEYS[1], id)
    redis.call('HDEL', job, 'tokens', 'class', 'first_token_ms')
    -- Not DEL: the ids of what comes next must be higher than those that readers have.
    redis.call('XTRIM', OUT_PREFIX .. id, 'MAXLEN', 0)
    changed[#changed + 1] = id
    changed[#changed + 1] = route
  end
end
return changed
