-- Take jobs from instances that no longer renew them, and end waiting jobs whose deadline passed.
-- KEYS[1] leases      zset
-- KEYS[2] deadlines   zset
-- ARGV[1] attempts until a job is DEAD   ARGV[2] at most this many
-- ARGV[3] an instance that is known to be gone: take all its jobs now; '' : those whose lease lapsed
-- ARGV[4], ARGV[5], ARGV[6] outcomes (JSON) of a job that is dead, cancelled, expired
-- ARGV[7] why the instance was lost (JSON)   ARGV[8] text that stands for the instance in ARGV[4] and ARGV[7], where
-- leases lapsed: one such word, which means itself in a pattern   ARGV[9] outcome (JSON) of a job that may run no longer
-- Returns {id, route, new state, id, route, new state ...}
local now, limit = now_ms(), tonumber(ARGV[2])
local changed = {}
local function tell(id, state)
  changed[#changed + 1] = id
  changed[#changed + 1] = place_of(id)
  changed[#changed + 1] = state
end

local function by_name(text, instance)
  if ARGV[3] ~= '' then return text end
  return (string.gsub(text, ARGV[8], instance or ''))
end

local lapsed
if ARGV[3] == '' then
  lapsed = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit)
else
  lapsed = redis.call('SMEMBERS', HELD_PREFIX .. ARGV[3])
end
for _, id in ipairs(lapsed) do
  local job = JOB_PREFIX .. id
  local f = redis.call('HMGET', job, 'state', 'instance')
  if f[1] ~= 'RUNNING' then
    redis.call('ZREM', KEYS[1], id)
    if ARGV[3] ~= '' then redis.call('SREM', HELD_PREFIX .. ARGV[3], id) end
  elseif ARGV[3] == '' or f[2] == ARGV[3] then
    local attempts = redis.call('HINCRBY', job, 'attempts', 1)
    redis.call('HSET', job, 'cause', by_name(ARGV[7], f[2]))
    note(id, ARGV[3] == '' and 'lapsed' or 'gone')
    if redis.call('HEXISTS', job, 'cancel') == 1 then
      settle(id, 'CANCELLED', ARGV[5])
      tell(id, 'CANCELLED')
    elseif attempts >= tonumber(ARGV[1]) then
      settle(id, 'DEAD', by_name(ARGV[4], f[2]))
      tell(id, 'DEAD')
    else
      note(id, 'retried')
      requeue(id)
      tell(id, 'QUEUED')
    end
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)) do
  local state, deadline = unpack(redis.call('HMGET', JOB_PREFIX .. id, 'state', 'deadline_ms'))
  if state == 'QUEUED' then
    withdraw(id)
    settle(id, 'EXPIRED', deadline and tonumber(deadline) <= now and ARGV[6] or ARGV[9])
    tell(id, 'EXPIRED')
  elseif state ~= 'RUNNING' then
    redis.call('ZREM', KEYS[2], id)
  end
end
return changed
