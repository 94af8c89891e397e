-- End a running job with its outcome and its last tokens, if this epoch still owns it.
-- Sending it again (its reply was lost with the connection) changes nothing and says 1 again.
-- KEYS[1] job record   hash
-- KEYS[2] job stream   stream
-- ARGV[1] job id   ARGV[2] epoch   ARGV[3] state   ARGV[4] outcome (JSON)
-- ARGV[5] what it adds to the counters, see tally.py
-- ARGV[6] index after the last token, as emit.lua has it, and the last chunk; all absent: none
-- ARGV[7] index, ARGV[8] text, ARGV[9] tokens, ARGV[10] reasoning, ARGV[11] calls, ARGV[12] logprobs
-- Returns 1 when this epoch ended the job, 0 when the job was lost to it
-- How fast the route serves, see rates.py.
local function measure(started)
  local key, now = RATE_PREFIX .. place_of(ARGV[1]), now_ms()
  local f = redis.call('HMGET', key, 'jobs', 'gap_ms', 'run_ms', 'last_ms')
  local jobs = (f[1] or 0) + 1
  local weight = math.max(1 / jobs, 1 / 16)
  local function mean(before, new)
    return before + weight * (new - before)
  end
  local gap, run = now - math.max(started, tonumber(f[4] or '0')), now - started
  redis.call('HSET', key, 'jobs', jobs, 'gap_ms', mean(f[2] or 0, gap), 'run_ms', mean(f[3] or 0, run), 'last_ms', now)
  redis.call('PEXPIRE', key, RATE_TTL_MS)
end

local f = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'started_ms')
if f[1] ~= ARGV[2] then return 0 end
if f[2] == ARGV[3] then return 1 end
if f[2] ~= 'RUNNING' then return 0 end
if ARGV[6] then
  append(KEYS[2], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12])
  redis.call('HSET', KEYS[1], 'tokens', ARGV[6])
  note_first(KEYS[1])
end
if ARGV[3] == 'SUCCEEDED' then measure(tonumber(f[3])) end
-- Each end by itself would take twenty increments; together they are mostly those of the same fields.
if settle(ARGV[1], ARGV[3], ARGV[4], ARGV[5]) >= TALLY_FOLD then fold() end
return 1
