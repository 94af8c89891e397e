-- Take one of a limited number out of an invitation.
-- KEYS[1] invitation   hash, expires
-- ARGV[1] field        uses or tries
-- Returns 1, or 0 when none is left or the invitation is over. The last use ends it
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) < 1 then return 0 end
local left = redis.call('HINCRBY', KEYS[1], ARGV[1], -1)
if ARGV[1] == 'uses' and left == 0 then redis.call('DEL', KEYS[1]) end
return 1
