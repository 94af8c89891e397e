-- Take doorbells off a route's queue while more lie there than jobs are ready: jobs were claimed that nobody had heard.
-- Else bells would pile up while all who hear them are busy with long jobs.
-- KEYS[1], KEYS[2] ready sets, interactive and bulk   zset   KEYS[3] doorbells   list, Celery's
-- ARGV[1] bells to take at most
-- Returns how many were taken
local ready = redis.call('ZCARD', KEYS[1]) + redis.call('ZCARD', KEYS[2])
local spare = math.min(redis.call('LLEN', KEYS[3]) - ready, tonumber(ARGV[1]))
for _ = 1, spare do redis.call('RPOP', KEYS[3]) end
return math.max(spare, 0)
