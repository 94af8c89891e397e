-- Fail jobs that wait on a route whose model cannot be loaded.
-- KEYS[1] ready set, interactive   zset
-- KEYS[2] ready set, bulk          zset
-- ARGV[1] outcome (JSON)   ARGV[2] at most this many
-- Returns how many were failed
local failed = 0
for _, ready in ipairs(KEYS) do
  while failed < tonumber(ARGV[2]) do
    local id = redis.call('ZRANGE', ready, 0, 0)[1]
    if not id then break end
    if redis.call('HGET', JOB_PREFIX .. id, 'state') == 'QUEUED' then
      withdraw(id)
      settle(id, 'FAILED', ARGV[1])
      failed = failed + 1
    end
    redis.call('ZREM', ready, id)
  end
end
return failed
