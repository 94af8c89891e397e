-- Take one doorbell off a route's queue, if more lie there than jobs are ready: a job was claimed that nobody had heard.
-- Else bells would pile up while all who hear them are busy with long jobs.
-- KEYS[1], KEYS[2] ready sets, interactive and bulk   zset   KEYS[3] doorbells   list, Celery's
-- Returns 1 when one was taken
local ready = redis.call('ZCARD', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if redis.call('LLEN', KEYS[3]) <= ready then return 0 end
redis.call('RPOP', KEYS[3])
return 1
