-- Begin waiting jobs anew whose tokens are of a numerics class that no instance of their route computes in: nobody would
-- ever go on with them. Their tokens are dropped; whoever has read some sees the next chunk begin at 0 again.
-- KEYS[1] deterministic jobs that waited with tokens   hash, job id -> class
-- ARGV[1], ARGV[2], ARGV[3] ...: route, name, class that is computed there, and so on; the name is that of an instance or
-- node that computes it, and '' for jobs that are meant for nobody
-- Jobs of routes that are not among these, and those meant for somebody who is not, are left alone.
-- Returns {id, route, id, route ...}
local known, computed, changed = {}, {}, {}
for i = 1, #ARGV, 3 do
  local place = ARGV[i] .. ' ' .. ARGV[i + 1]
  known[place] = true
  computed[place .. ' ' .. ARGV[i + 2]] = true
end
local begun = redis.call('HGETALL', KEYS[1])
for i = 1, #begun, 2 do
  local id, class = begun[i], begun[i + 1]
  local job = JOB_PREFIX .. id
  local state, meant_for = unpack(redis.call('HMGET', job, 'state', 'meant_for'))
  local route = place_of(id)
  local place = (route or '') .. ' ' .. (meant_for or '')
  if not state then
    redis.call('HDEL', KEYS[1], id)
  elseif state == 'QUEUED' and known[place] and not computed[place .. ' ' .. class] then
    redis.call('HDEL', KEYS[1], id)
    redis.call('HDEL', job, 'tokens', 'class', 'first_token_ms')
    -- Not DEL: the ids of what comes next must be higher than those that readers have.
    redis.call('XTRIM', OUT_PREFIX .. id, 'MAXLEN', 0)
    changed[#changed + 1] = id
    changed[#changed + 1] = route
  end
end
return changed
