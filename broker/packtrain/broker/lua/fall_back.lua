-- Let a running job that has no token wait for the next of its targets that has not failed, if this epoch still owns it.
-- KEYS[1] job record   hash
-- ARGV[1] job id   ARGV[2] epoch   ARGV[3] why, for people (JSON)   ARGV[4] see fairness.py: what the clock moves on by
-- ARGV[5] outcome if a client had asked to cancel (JSON)
-- Returns its new route, or '' when it goes nowhere else
if not is_owner(KEYS[1], ARGV[2]) then return '' end
local f = redis.call('HMGET', KEYS[1], 'targets', 'failed', 'model', 'tokens', 'route', 'cancel')
if not f[1] or tonumber(f[4] or '0') > 0 then return '' end
if f[6] then
  settle(ARGV[1], 'CANCELLED', ARGV[5])
  return ''
end
local failed = (f[2] and f[2] .. ' ' or '') .. f[3]
for target in string.gmatch(f[1], '%S+') do
  if not string.find(' ' .. failed .. ' ', ' ' .. target .. ' ', 1, true) then
    unlease(ARGV[1])
    redis.call('HSET', KEYS[1], 'failed', failed, 'cause', ARGV[3])
    return enqueue(ARGV[1], target, string.sub(f[5] or f[3], #f[3] + 1), ARGV[4])
  end
end
return ''
