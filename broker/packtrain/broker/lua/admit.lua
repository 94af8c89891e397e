-- Let a request of an API key begin, or say when it may: api_keys.py.
-- KEYS[1] under way  zset, request -> until when it counts, ms. Whoever answers it keeps that ahead
-- KEYS[2] spent      hash, second -> tokens charged in it
-- ARGV[1] request, ARGV[2] most under way, 0: any number, ARGV[3] how long it counts, ms
-- ARGV[4] most tokens in 60 s, 0: any number, ARGV[5] tokens that it is charged, at most that
-- Returns what is short ('', 'concurrent' or 'tokens'), the second of the charge, what is used, and for tokens the ms
-- until enough are free. Sent twice, it charges once
local now = now_ms()
local second = math.floor(now / 1000)
local most, limit = tonumber(ARGV[2]), tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return {'', second, 0, 0} end
local busy = redis.call('ZCARD', KEYS[1])
if most > 0 and busy >= most then return {'concurrent', second, busy, 0} end
if limit > 0 then
  -- At most 60 fields and those of the seconds since the last request, which are forgotten here.
  local charged, spent = {}, 0
  local all = redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local at, tokens = tonumber(all[i]), tonumber(all[i + 1])
    if at <= second - 60 then
      redis.call('HDEL', KEYS[2], all[i])
    else
      charged[#charged + 1] = {at, tokens}
      spent = spent + tokens
    end
  end
  local over = spent + tonumber(ARGV[5]) - limit
  if over > 0 then
    table.sort(charged, function(a, b) return a[1] < b[1] end)
    for _, entry in ipairs(charged) do
      over = over - entry[2]
      if over <= 0 then return {'tokens', second, spent, (entry[1] + 60) * 1000 - now} end
    end
  end
  redis.call('HINCRBY', KEYS[2], second, ARGV[5])
  redis.call('PEXPIRE', KEYS[2], 120000)
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3] * 2)
return {'', second, 0, 0}
