-- Append tokens to the stream of a running job, if this epoch still owns it.
-- Sending the same chunk again (its reply was lost with the connection) changes nothing.
-- KEYS[1] job record   hash
-- KEYS[2] job stream   stream
-- ARGV[1] epoch   ARGV[2] index after the last token
-- ARGV[3] index of the first token   ARGV[4] text   ARGV[5] token ids, comma separated
-- ARGV[6] reasoning   ARGV[7] pieces of tool calls (JSON)   ARGV[8] logprobs (JSON)
-- Returns -1 when the job is lost to this epoch, 1 when a client asked to cancel, else 0
local f = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'cancel', 'tokens')
if f[1] ~= ARGV[1] or f[2] ~= 'RUNNING' then return -1 end
local first, stored = tonumber(ARGV[3]), tonumber(f[4] or '0')
-- Tokens before it are missing (a power loss took them): this epoch cannot mend that, a resume from the stream can.
if first > stored then return -1 end
if first == stored then
  append(KEYS[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
  redis.call('HSET', KEYS[1], 'tokens', ARGV[2])
  if first == 0 then
    note_first(KEYS[1])
    redis.call('PEXPIRE', KEYS[2], STREAM_TTL_MS)
  end
end
if f[3] then return 1 end
return 0
