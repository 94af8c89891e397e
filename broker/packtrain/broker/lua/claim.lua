-- Lease the best ready job of a model to an instance: interactive lane first, then the order of submission.
-- A job whose instances died too often is a suspect: it runs alone, on an instance that holds no other lease, and
-- nothing is claimed past it meanwhile. So if it kills once more, it kills only itself.
-- KEYS[1] ready set, interactive   zset
-- KEYS[2] ready set, bulk          zset
-- KEYS[3] doorbells of the model   list, Celery's
-- ARGV[1] model   ARGV[2] instance   ARGV[3] node   ARGV[4] lease, ms   ARGV[5] outcome of an expired job (JSON)
-- ARGV[6] attempts that make a job a suspect
-- Returns {id, epoch, attempts, submitted_ms, now_ms, deadline_ms or '', spec, jobs still ready beyond the doorbells},
-- or false when there is nothing to claim
local now, held = now_ms(), HELD_PREFIX .. ARGV[2]
local function is_suspect(attempts)
  return tonumber(attempts or '0') >= tonumber(ARGV[6])
end

local num_held = redis.call('SCARD', held)
if num_held == 1 then
  local only = redis.call('SMEMBERS', held)[1]
  if is_suspect(redis.call('HGET', JOB_PREFIX .. only, 'attempts')) then return false end
end
while true do
  local ready = KEYS[1]
  local id = redis.call('ZRANGE', ready, 0, 0)[1]
  if not id then
    ready = KEYS[2]
    id = redis.call('ZRANGE', ready, 0, 0)[1]
  end
  if not id then
    redis.call('SREM', WAITING, ARGV[1])
    return false
  end
  local job = JOB_PREFIX .. id
  local f = redis.call('HMGET', job, 'state', 'deadline_ms', 'attempts', 'submitted_ms', 'spec')
  if f[1] == 'QUEUED' and is_suspect(f[3]) and num_held > 0 then return false end
  redis.call('ZREM', ready, id)
  if f[1] == 'QUEUED' then
    if f[2] and tonumber(f[2]) <= now then
      settle(id, 'EXPIRED', ARGV[5])
    else
      local epoch = redis.call('HINCRBY', job, 'epoch', 1)
      -- A stream that has expired has no tokens: what comes next begins at 0 again.
      if redis.call('EXISTS', OUT_PREFIX .. id) == 0 then redis.call('HDEL', job, 'tokens') end
      redis.call('HSET', job, 'state', 'RUNNING', 'instance', ARGV[2], 'node', ARGV[3], 'started_ms', now)
      redis.call('ZADD', LEASES, now + tonumber(ARGV[4]), id)
      redis.call('SADD', held, id)
      redis.call('PEXPIRE', held, ENDED_TTL_MS)
      local ready_left = redis.call('ZCARD', KEYS[1]) + redis.call('ZCARD', KEYS[2])
      return {id, epoch, f[3], f[4], now, f[2] or '', f[5], ready_left - redis.call('LLEN', KEYS[3])}
    end
  end
end
