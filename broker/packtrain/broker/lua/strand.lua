-- Fail waiting jobs that are meant for an instance or node which does not serve their route: nobody would ever claim them.
-- KEYS[1] jobs that are meant for somebody   hash, job id -> name
-- ARGV[1] outcome (JSON)   ARGV[2], ARGV[3] ...: route, name that serves it, route, name ...; '' as name: only the route
-- Jobs of routes that are not among these are left alone.
-- Returns how many were failed
local known, serves, failed = {}, {}, 0
for i = 2, #ARGV, 2 do
  known[ARGV[i]] = true
  serves[ARGV[i] .. ' ' .. ARGV[i + 1]] = true
end
local meant = redis.call('HGETALL', KEYS[1])
for i = 1, #meant, 2 do
  local id, name = meant[i], meant[i + 1]
  local f = redis.call('HMGET', JOB_PREFIX .. id, 'state', 'route', 'lane')
  if not f[1] then
    redis.call('HDEL', KEYS[1], id)
  elseif f[1] == 'QUEUED' and known[f[2]] and not serves[f[2] .. ' ' .. name] then
    redis.call('ZREM', ready_key(f[2], f[3]), id)
    settle(id, 'FAILED', ARGV[1])
    failed = failed + 1
  end
end
return failed
