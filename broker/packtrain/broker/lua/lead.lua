-- Become or stay the leading coordinator.
-- KEYS[1] leader   string, expires
-- KEYS[2] term     string, counter
-- ARGV[1] coordinator id   ARGV[2] ms until the leadership lapses
-- Returns the term of this coordinator's leadership, or 0 when another one leads
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(redis.call('GET', KEYS[2]))
end
if holder then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('INCR', KEYS[2])
