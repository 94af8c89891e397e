-- Fail jobs that wait on a route whose model cannot be loaded.
-- KEYS[1] ready set, interactive   zset
-- KEYS[2] ready set, bulk          zset
-- ARGV[1] outcome (JSON)   ARGV[2] at most this many
-- Returns how many were failed
local failed = 0
for _, ready in ipairs(KEYS) do
  while failed < tonumber(ARGV[2]) do
    local popped = redis.call('ZPOPMIN', ready)
    if #popped == 0 then break end
    if redis.call('HGET', JOB_PREFIX .. popped[1], 'state') == 'QUEUED' then
      settle(popped[1], 'FAILED', ARGV[1])
      failed = failed + 1
    end
  end
end
return failed
