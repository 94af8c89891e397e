-- Append tokens to the stream of a running job, if this epoch still owns it.
-- Sending the same chunk again (its reply was lost with the connection) changes nothing.
-- KEYS[1] job record   hash
-- KEYS[2] job stream   stream
-- ARGV[1] epoch   ARGV[2] index of the first token   ARGV[3] text   ARGV[4] token ids, comma separated
-- ARGV[5] index after the last token
-- Returns -1 when the job is lost to this epoch, 1 when a client asked to cancel, else 0
local f = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'cancel', 'tokens')
if f[1] ~= ARGV[1] or f[2] ~= 'RUNNING' then return -1 end
local first, stored = tonumber(ARGV[2]), tonumber(f[4] or '0')
-- Tokens before it are missing (a power loss took them): this epoch cannot mend that, a resume from the stream can.
if first > stored then return -1 end
if first == stored then
  redis.call('XADD', KEYS[2], '*', 'i', ARGV[2], 't', ARGV[3], 'k', ARGV[4])
  redis.call('HSET', KEYS[1], 'tokens', ARGV[5])
  if first == 0 then
    redis.call('HSET', KEYS[1], 'first_token_ms', now_ms())
    redis.call('PEXPIRE', KEYS[2], STREAM_TTL_MS)
  end
end
if f[3] then return 1 end
return 0
