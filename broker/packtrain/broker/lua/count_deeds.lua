-- Count what was not counted before, see deeds.py.
-- KEYS[1] names of what is counted   zset, name -> when it was last seen, ms
-- KEYS[2] counters                   hash
-- ARGV[1] ms that a name is kept after it was last seen   ARGV[2] ms that both keys live
-- ARGV[3], ARGV[4] ...: name, figures 'field number field number ...', name, figures ...
-- Returns how many were new
local now, new = now_ms(), 0
for i = 3, #ARGV, 2 do
  if redis.call('ZADD', KEYS[1], now, ARGV[i]) == 1 then
    new = new + 1
    for field, number in string.gmatch(ARGV[i + 1], '(%S+) (%S+)') do
      redis.call('HINCRBY', KEYS[2], field, number)
    end
    redis.call('PEXPIRE', KEYS[2], TALLY_TTL_MS)
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return new
