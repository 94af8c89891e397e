-- Lease the best ready job of a model to an instance: interactive lane first, then the order of submission.
-- KEYS[1] ready set, interactive   zset
-- KEYS[2] ready set, bulk          zset
-- ARGV[1] model   ARGV[2] instance   ARGV[3] node   ARGV[4] lease, ms   ARGV[5] outcome of an expired job (JSON)
-- Returns {id, epoch, attempts, submitted_ms, now_ms, deadline_ms or '', spec}, or false when nothing is ready
local now = now_ms()
while true do
  local popped = redis.call('ZPOPMIN', KEYS[1])
  if #popped == 0 then popped = redis.call('ZPOPMIN', KEYS[2]) end
  if #popped == 0 then
    redis.call('SREM', WAITING, ARGV[1])
    return false
  end
  local id = popped[1]
  local job = JOB_PREFIX .. id
  local f = redis.call('HMGET', job, 'state', 'deadline_ms', 'attempts', 'submitted_ms', 'spec')
  if f[1] == 'QUEUED' then
    if f[2] and tonumber(f[2]) <= now then
      settle(id, 'EXPIRED', ARGV[5])
    else
      local epoch = redis.call('HINCRBY', job, 'epoch', 1)
      -- A stream that has expired has no tokens: what comes next begins at 0 again.
      if redis.call('EXISTS', OUT_PREFIX .. id) == 0 then redis.call('HDEL', job, 'tokens') end
      redis.call('HSET', job, 'state', 'RUNNING', 'instance', ARGV[2], 'node', ARGV[3], 'started_ms', now)
      redis.call('ZADD', LEASES, now + tonumber(ARGV[4]), id)
      redis.call('SADD', HELD_PREFIX .. ARGV[2], id)
      redis.call('PEXPIRE', HELD_PREFIX .. ARGV[2], ENDED_TTL_MS)
      return {id, epoch, f[3], f[4], now, f[2] or '', f[5]}
    end
  end
end
