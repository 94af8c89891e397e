-- Lease the best ready job of an instance's routes to it: interactive lane first, then the lowest start tag (fairness.py).
-- Among the first ready jobs those come first whose prompt begins as one that the instance holds; a job is passed over
-- for that only so often. A job that is meant for another instance or node is left where it is, and so is a
-- deterministic one that has tokens of another numerics class: resumed, it would be a mix that no receipt could name.
-- A job whose instances died too often is a suspect: it runs alone, on an instance that holds no other lease, and
-- nothing is claimed past it meanwhile. So if it kills once more, it kills only itself.
-- For n routes:
-- KEYS[1] ... KEYS[n]   ready sets, interactive   zset
-- the next n            ready sets, bulk          zset
-- the last n            doorbells                 list, Celery's
-- ARGV[1] instance   ARGV[2] node   ARGV[3] lease, ms   ARGV[4] outcome of an expired job (JSON)
-- ARGV[5] attempts that make a job a suspect   ARGV[6] hashes of prefixes held, '' for none: ' 1f2e3d4c 0a1b2c3d '
-- ARGV[7] ready jobs that are looked at together   ARGV[8] times that a job may be passed over
-- ARGV[9] the last lane that is looked at: 0 interactive, 1 bulk
-- ARGV[10] outcome of a job that may run no longer (JSON)
-- ARGV[11 ...] the routes, then for each the numerics class that its jobs are computed in, '' where that does not matter
-- Returns {id, epoch, attempts, submitted_ms, now_ms, deadline_ms or '', spec, route, {routes with more jobs still ready
-- than doorbells}, lane, until when it may run, ms, or '', trace or '', since when it waited, ms}, or false when there is nothing to claim
local FIXED = 10
local LANES = {[0] = 'interactive', [1] = 'bulk'}
local now, held = now_ms(), HELD_PREFIX .. ARGV[1]
local num_routes, prefers = (#ARGV - FIXED) / 2, ARGV[6] ~= ''
local function is_suspect(attempts)
  return attempts and tonumber(attempts) >= tonumber(ARGV[5])
end

local num_held = redis.call('SCARD', held)
if num_held == 1 then
  local only = redis.call('SMEMBERS', held)[1]
  if is_suspect(redis.call('HGET', JOB_PREFIX .. only, 'attempts')) then return false end
end

-- The ids of the next `count` ready jobs of one lane, in the order of their tags; `skipped` of each route are left where
-- they are. With several routes, the number of each job's route, too.
local function candidates(lane, skipped, count)
  if num_routes == 1 then return redis.call('ZRANGE', KEYS[lane + 1], skipped[1], skipped[1] + count - 1), {} end
  local found, ids, routes = {}, {}, {}
  for route = 1, num_routes do
    local ready = KEYS[lane * num_routes + route]
    local page = redis.call('ZRANGE', ready, skipped[route], skipped[route] + count - 1, 'WITHSCORES')
    for i = 1, #page, 2 do
      found[#found + 1] = {id = page[i], order = tonumber(page[i + 1]), route = route}
    end
  end
  table.sort(found, function(a, b)
    return a.order < b.order or (a.order == b.order and a.id < b.id)
  end)
  -- Behind the last one of a full page of one route there may be earlier ones than the rest of the other's.
  for i = 1, math.min(#found, count) do
    ids[i], routes[i] = found[i].id, found[i].route
  end
  return ids, routes
end

-- How many of a job's prefixes the instance holds: the more, the longer the common beginning. It holds none without the
-- shorter ones, and these come first.
local function num_shared(prefixes)
  local shared, at = 0, 1
  while prefixes and at < #prefixes and string.find(ARGV[6], string.sub(prefixes, at, at + 7), 1, true) do
    shared, at = shared + 1, at + 9
  end
  return shared
end

-- The record of a ready job that this instance may run: all that is wanted of it, for it is far from everything else in
-- memory. Otherwise nothing: the job is over, or left where it is.
local function read(id, lane, route, skipped)
  local f = redis.call(
    'HMGET', JOB_PREFIX .. id, 'state', 'deadline_ms', 'run_until_ms', 'meant_for', 'tokens', 'class', 'attempts',
    'passed', 'epoch', 'submitted_ms', 'max_run_ms', 'order', 'user', 'spec', 'traceparent', 'requeued_ms'
  )
  local deadline, run_until, meant_for, class = f[2], f[3], f[4], ARGV[FIXED + num_routes + route]
  if f[1] ~= 'QUEUED' then
    redis.call('ZREM', KEYS[lane * num_routes + route], id)
    -- If its record expired, nobody knows whose count it was in: count anew rather than too high.
    if not f[1] then
      redis.call('DEL', queued_key(model_of(ARGV[FIXED + route]), LANES[lane]))
      redis.call('HDEL', PREFIXES, id)
    end
  elseif deadline and tonumber(deadline) <= now then
    withdraw(id)
    settle(id, 'EXPIRED', ARGV[4])
  elseif run_until and tonumber(run_until) <= now then
    withdraw(id)
    settle(id, 'EXPIRED', ARGV[10])
  elseif meant_for and meant_for ~= ARGV[1] and meant_for ~= ARGV[2] then
    skipped[route] = skipped[route] + 1
  elseif f[5] and f[6] and class ~= '' and f[6] ~= class then
    -- It has tokens that were computed in another class than this instance would go on in.
    skipped[route] = skipped[route] + 1
  else
    return f
  end
end

-- The clock of fair queueing moves on to this job's tag; users whose tags it has reached are as any other now.
local function serve(order, model, lane)
  local fair = fair_key(model, lane)
  local clock = redis.call('ZSCORE', fair, '')
  if clock and tonumber(clock) < tonumber(order) then
    redis.call('ZADD', fair, order, '')
    redis.call('ZREMRANGEBYSCORE', fair, '-inf', '(' .. order)
  end
end

local function lease(id, lane, route, f)
  local job, model, class = JOB_PREFIX .. id, model_of(ARGV[FIXED + route]), ARGV[FIXED + num_routes + route]
  local deadline, run_until, tokens, epoch = f[2], f[3], f[5], (f[9] or 0) + 1
  redis.call('ZREM', KEYS[lane * num_routes + route], id)
  -- A stream that has expired has no tokens: what comes next begins at 0 again.
  if tokens and redis.call('EXISTS', OUT_PREFIX .. id) == 0 then
    redis.call('HDEL', job, 'tokens')
    tokens = false
  end
  if class ~= '' and not tokens then redis.call('HSET', job, 'class', class) end
  if f[11] and not run_until then
    run_until = now + tonumber(f[11])
    redis.call('HSET', job, 'run_until_ms', run_until)
    redis.call('ZADD', DEADLINES, math.min(run_until, tonumber(deadline or run_until)), id)
  end
  redis.call('HSET', job, 'state', 'RUNNING', 'epoch', epoch, 'instance', ARGV[1], 'node', ARGV[2], 'started_ms', now)
  redis.call('ZADD', LEASES, now + tonumber(ARGV[3]), id)
  redis.call('SADD', held, id)
  redis.call('PEXPIRE', held, ENDED_TTL_MS)
  count_out(model, LANES[lane], f[13])
  serve(f[12], model, LANES[lane])
  local unrung = {}
  for other = 1, num_routes do
    local left = redis.call('ZCARD', KEYS[other]) + redis.call('ZCARD', KEYS[num_routes + other])
    if left > redis.call('LLEN', KEYS[2 * num_routes + other]) then unrung[#unrung + 1] = ARGV[FIXED + other] end
  end
  return {
    id, epoch, f[7] or 0, f[10], now, deadline or '', f[14], ARGV[FIXED + route], unrung, LANES[lane], run_until or '',
    f[15] or '', f[16] or f[10]
  }
end

-- Of the jobs behind the first one that may run, that with the most prefixes held, if it has more of them.
local function preferred(ids, routes, first, lane, skipped)
  local prefixes = redis.call('HMGET', PREFIXES, unpack(ids))
  local least, shared = num_shared(prefixes[first]), {}
  for i = first + 1, #ids do shared[i] = num_shared(prefixes[i]) end
  while true do
    local best, most = nil, least
    for i = first + 1, #ids do
      if shared[i] > most then best, most = i, shared[i] end
    end
    if not best then return end
    local f = read(ids[best], lane, routes[best] or 1, skipped)
    if f and not is_suspect(f[7]) then return best, f end
    shared[best] = 0
  end
end

for lane = 0, tonumber(ARGV[9]) do
  local skipped, count = {}, prefers and tonumber(ARGV[7]) or 1
  for route = 1, num_routes do skipped[route] = 0 end
  repeat
    local ids, routes = candidates(lane, skipped, count)
    for i, id in ipairs(ids) do
      local route = routes[i] or 1
      local f = read(id, lane, route, skipped)
      if f then
        if is_suspect(f[7]) then
          if num_held > 0 then return false end
        elseif prefers and i < #ids and tonumber(f[8] or '0') < tonumber(ARGV[8]) then
          local best, record = preferred(ids, routes, i, lane, skipped)
          if best then
            redis.call('HINCRBY', JOB_PREFIX .. id, 'passed', 1)
            return lease(ids[best], lane, routes[best] or 1, record)
          end
        end
        return lease(id, lane, route, f)
      end
    end
    count = tonumber(ARGV[7])
  until #ids == 0
end
for route = 1, num_routes do
  if redis.call('EXISTS', KEYS[route], KEYS[num_routes + route]) == 0 then
    redis.call('SREM', WAITING, ARGV[FIXED + route])
  end
end
return false
