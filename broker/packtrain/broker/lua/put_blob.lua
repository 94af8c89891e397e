-- Keep a blob, or keep one longer that is there: blobs.py.
-- KEYS[1] the blob, KEYS[2] zset, blob:size -> when it goes, ms, KEYS[3] bytes of all
-- ARGV[1] its hash, ARGV[2] its bytes; '' keeps only one that is there, ARGV[3] how long, ms, ARGV[4] most bytes of all
-- Returns 1: it is kept; 0: it is not there; -1: there is no room. Sent twice, it is counted once
local now = now_ms()
local size = string.len(ARGV[2])
if redis.call('PEXPIRE', KEYS[1], ARGV[3]) == 1 then
  size = redis.call('STRLEN', KEYS[1])
elseif size == 0 then
  return 0
else
  -- What has gone since: few at a time, for there may be many.
  local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 200)
  for _, member in ipairs(gone) do
    redis.call('ZREM', KEYS[2], member)
    redis.call('DECRBY', KEYS[3], string.match(member, ':(%d+)$'))
  end
  local all = tonumber(redis.call('GET', KEYS[3]) or '0')
  if all + size > tonumber(ARGV[4]) then return -1 end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('INCRBY', KEYS[3], size)
end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1] .. ':' .. size)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
