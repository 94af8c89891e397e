-- A request of an API key has ended: it counts no more, and is charged for what it used instead of what was guessed.
-- KEYS[1] under way, KEYS[2] spent  as in admit.lua
-- ARGV[1] request, ARGV[2] second of the charge, ARGV[3] tokens charged then, 0: its key has no limit of them,
-- ARGV[4] tokens used; '': not known
-- Returns 1, or 0 when it had ended before
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
if ARGV[4] == '' or ARGV[3] == '0' then return 1 end
-- The guess left the window by itself where the request took more than a minute.
local guessed = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or 0)
if guessed > 0 then redis.call('HINCRBY', KEYS[2], ARGV[2], -math.min(guessed, tonumber(ARGV[3]))) end
redis.call('HINCRBY', KEYS[2], math.floor(now_ms() / 1000), ARGV[4])
redis.call('PEXPIRE', KEYS[2], 120000)
return 1
