-- Give up the leadership, if held, so that a standby need not wait for it to lapse.
-- KEYS[1] leader   string
-- ARGV[1] coordinator id
-- Returns 1 when it was held, else 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
