-- Write a job record and put it into the ready set of its model. The same id twice is the same job.
-- KEYS[1] job record   hash
-- What the catalog says of the model is read only, so its key is not declared: that would take the right to write it.
-- ARGV[1] job id       ARGV[2] spec (JSON)     ARGV[3] digest of the spec
-- ARGV[4] model        ARGV[5] lane            ARGV[6] user
-- ARGV[7] ms until the deadline, '' for none   ARGV[8] jobs that may wait for one model
-- ARGV[9] what makes the route of the model     ARGV[10] hashes of its prefixes, '' for none
-- ARGV[11] instance or node that alone may run it, '' for any   ARGV[12] ms that it is kept after its end, '' as ever
-- ARGV[13] what it is taken to cost, tokens        ARGV[14] see fairness.py: what the clock moves on by
-- ARGV[15] jobs of one user that may wait for one model, '' for any
-- ARGV[16] ms that it may run, '' for any         ARGV[17] 1: it may go to another target of its model's name
-- ARGV[18] tag that it is counted under, '' for none   ARGV[19] trace that it belongs to, '' for none
-- Returns {verdict, number, model}: 'new' and jobs now ready | 'old' | 'conflict' | 'unknown'
--   | 'full' and jobs ready, then ms from one served to the next or ''
--   | 'full of one user' and his jobs that wait, then the same for one of his own
local id, model = ARGV[1], ARGV[4]
local seen = redis.call('HGET', KEYS[1], 'digest')
if seen then
  if seen == ARGV[3] then return {'old', 0, redis.call('HGET', KEYS[1], 'model')} end
  return {'conflict', 0, model}
end
local facts = MODEL_PREFIX .. model
if redis.call('EXISTS', facts) == 0 then return {'unknown', 0, model} end
local alias, targets, spill_s = unpack(redis.call('HMGET', facts, 'alias_of', 'targets', 'spill_after_s'))
if alias then
  alias = cjson.decode(alias)
  if alias ~= '' then model = alias end
end
targets = targets and ARGV[17] == '1' and cjson.decode(targets) or {}
spill_s = spill_s and cjson.decode(spill_s)
local route = model .. ARGV[9]
local waiting = redis.call('ZCARD', ready_key(route, 'interactive')) + redis.call('ZCARD', ready_key(route, 'bulk'))
local function gap_ms(users)
  local gap = redis.call('HGET', RATE_PREFIX .. route, 'gap_ms')
  return gap and tostring(gap * users) or ''
end
if waiting >= tonumber(ARGV[8]) then return {'full', waiting, model, gap_ms(1)} end
if ARGV[15] ~= '' then
  local mine = 0
  for _, lane in ipairs({'interactive', 'bulk'}) do
    mine = mine + (redis.call('HGET', queued_key(model, lane), ARGV[6]) or 0)
  end
  if mine >= tonumber(ARGV[15]) then
    return {'full of one user', mine, model, gap_ms(redis.call('HLEN', queued_key(model, ARGV[5])))}
  end
end

local lane, user = ARGV[5], ARGV[6]
local order = start_tag(model, lane, user, ARGV[13], ARGV[14])
count_in(model, lane, user)

local now = now_ms()
-- What is as it mostly is stands in no field: a waiting job weighs less so. Epoch and attempts count from 0.
redis.call('HSET', KEYS[1], 'state', 'QUEUED', 'spec', ARGV[2], 'digest', ARGV[3], 'model', model, 'lane', lane,
  'user', user, 'order', order, 'submitted_ms', now)
if route ~= model then redis.call('HSET', KEYS[1], 'route', route) end
if ARGV[12] ~= '' then redis.call('HSET', KEYS[1], 'keep_ms', ARGV[12]) end
if ARGV[10] ~= '' then
  redis.call('HSET', PREFIXES, id, ARGV[10])
  redis.call('PEXPIRE', PREFIXES, QUEUED_TTL_MS)
end
if ARGV[11] ~= '' then
  redis.call('HSET', KEYS[1], 'meant_for', ARGV[11])
  redis.call('HSET', MEANT, id, ARGV[11])
  redis.call('PEXPIRE', MEANT, QUEUED_TTL_MS)
end
if ARGV[18] ~= '' then redis.call('HSET', KEYS[1], 'tag', ARGV[18]) end
if ARGV[19] ~= '' then redis.call('HSET', KEYS[1], 'traceparent', ARGV[19]) end
if ARGV[16] ~= '' then redis.call('HSET', KEYS[1], 'max_run_ms', ARGV[16]) end
if #targets > 1 then
  redis.call('HSET', KEYS[1], 'targets', table.concat(targets, ' '), 'cost', ARGV[13])
  if type(spill_s) == 'number' then redis.call('HSET', KEYS[1], 'spill_ms', math.floor(spill_s * 1000)) end
  note_movable(id, route, lane, order)
end
redis.call('PEXPIRE', KEYS[1], QUEUED_TTL_MS)
if ARGV[7] ~= '' then
  local deadline = now + tonumber(ARGV[7])
  redis.call('HSET', KEYS[1], 'deadline_ms', deadline)
  redis.call('ZADD', DEADLINES, deadline, id)
end
redis.call('ZADD', ready_key(route, lane), order, id)
redis.call('SADD', WAITING, route)
redis.call('ZADD', RECENT, now, id)
redis.call('ZREMRANGEBYRANK', RECENT, 0, -RECENT_MAX - 1)
return {'new', waiting + 1, model}
