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
  local state = redis.call('HGET', JOB_PREFIX .. id, 'state')
  local route = place_of(id)
  if not state then
    redis.call('HDEL', KEYS[1], id)
  elseif state == 'QUEUED' and known[route] and not serves[route .. ' ' .. name] then
    withdraw(id)
    settle(id, 'FAILED', ARGV[1])
    failed = failed + 1
  end
end
return failed
