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
-- than doorbells}, lane, until when it may run, ms, or ''}, or false when there is nothing to claim
local FIXED = 10
local LANES = {[0] = 'interactive', [1] = 'bulk'}
local now, held = now_ms(), HELD_PREFIX .. ARGV[1]
local num_routes, look = (#ARGV - FIXED) / 2, tonumber(ARGV[7])
local function is_suspect(attempts)
  return tonumber(attempts or '0') >= tonumber(ARGV[5])
end

local num_held = redis.call('SCARD', held)
if num_held == 1 then
  local only = redis.call('SMEMBERS', held)[1]
  if is_suspect(redis.call('HGET', JOB_PREFIX .. only, 'attempts')) then return false end
end

-- The next `look` ready jobs of one lane, in the order of their tags; `skipped` of each route are left where they are.
local function candidates(lane, skipped)
  local found = {}
  for route = 1, num_routes do
    local ready = KEYS[lane * num_routes + route]
    local page = redis.call('ZRANGE', ready, skipped[route], skipped[route] + look - 1, 'WITHSCORES')
    for i = 1, #page, 2 do
      found[#found + 1] = {id = page[i], order = tonumber(page[i + 1]), route = route, ready = ready}
    end
  end
  if num_routes > 1 then
    table.sort(found, function(a, b)
      return a.order < b.order or (a.order == b.order and a.id < b.id)
    end)
    -- Behind the last one of a full page of one route there may be earlier ones than the rest of the other's.
    for i = #found, look + 1, -1 do found[i] = nil end
  end
  return found
end

-- True when a job has tokens that were computed in another class than this instance would go on in.
local function is_begun_elsewhere(c, tokens, class)
  local mine = ARGV[FIXED + num_routes + c.route]
  return tokens and class and mine ~= '' and class ~= mine
end

-- How many of a job's prefixes the instance holds: the more, the longer the common beginning.
local function num_shared(prefixes)
  local shared = 0
  for hash in string.gmatch(prefixes or '', '%S+') do
    if string.find(ARGV[6], hash, 1, true) then shared = shared + 1 end
  end
  return shared
end

-- The clock of fair queueing moves on to this job's tag; users whose tags it has reached are as any other now.
local function serve(c, model, lane)
  local fair = fair_key(model, lane)
  local clock = redis.call('ZSCORE', fair, '')
  if clock and tonumber(clock) < c.order then
    redis.call('ZADD', fair, c.order, '')
    redis.call('ZREMRANGEBYSCORE', fair, '-inf', string.format('(%.17g', c.order))
  end
end

local function lease(c)
  local job = JOB_PREFIX .. c.id
  local f = redis.call(
    'HMGET', job, 'epoch', 'attempts', 'submitted_ms', 'deadline_ms', 'spec', 'lane', 'model', 'user', 'tokens',
    'max_run_ms', 'run_until_ms'
  )
  local epoch, deadline, tokens, run_until = (f[1] or 0) + 1, f[4], f[9], f[11]
  redis.call('ZREM', c.ready, c.id)
  -- A stream that has expired has no tokens: what comes next begins at 0 again.
  if tokens and redis.call('EXISTS', OUT_PREFIX .. c.id) == 0 then
    redis.call('HDEL', job, 'tokens')
    tokens = false
  end
  local class = ARGV[FIXED + num_routes + c.route]
  if class ~= '' and not tokens then redis.call('HSET', job, 'class', class) end
  if f[10] and not run_until then
    run_until = now + tonumber(f[10])
    redis.call('HSET', job, 'run_until_ms', run_until)
    redis.call('ZADD', DEADLINES, math.min(run_until, tonumber(deadline or run_until)), c.id)
  end
  redis.call('HSET', job, 'state', 'RUNNING', 'epoch', epoch, 'instance', ARGV[1], 'node', ARGV[2], 'started_ms', now)
  redis.call('ZADD', LEASES, now + tonumber(ARGV[3]), c.id)
  redis.call('SADD', held, c.id)
  redis.call('PEXPIRE', held, ENDED_TTL_MS)
  count_out(f[7], f[6], f[8])
  serve(c, f[7], f[6])
  local unrung = {}
  for route = 1, num_routes do
    local left = redis.call('ZCARD', KEYS[route]) + redis.call('ZCARD', KEYS[num_routes + route])
    if left > redis.call('LLEN', KEYS[2 * num_routes + route]) then unrung[#unrung + 1] = ARGV[FIXED + route] end
  end
  return {
    c.id, epoch, f[2] or 0, f[3], now, deadline or '', f[5], ARGV[FIXED + c.route], unrung, f[6], run_until or ''
  }
end

for lane = 0, tonumber(ARGV[9]) do
  local skipped = {}
  for route = 1, num_routes do skipped[route] = 0 end
  repeat
    local found = candidates(lane, skipped)
    local head, best, best_shared
    for _, c in ipairs(found) do
      local job = JOB_PREFIX .. c.id
      local f = redis.call(
        'HMGET', job, 'state', 'deadline_ms', 'attempts', 'meant_for', 'prefixes', 'passed', 'tokens', 'class',
        'run_until_ms'
      )
      if f[1] ~= 'QUEUED' then
        redis.call('ZREM', c.ready, c.id)
        -- If its record expired, nobody knows whose count it was in: count anew rather than too high.
        if not f[1] then redis.call('DEL', queued_key(model_of(ARGV[FIXED + c.route]), LANES[lane])) end
      elseif f[2] and tonumber(f[2]) <= now then
        withdraw(c.id)
        settle(c.id, 'EXPIRED', ARGV[4])
      elseif f[9] and tonumber(f[9]) <= now then
        withdraw(c.id)
        settle(c.id, 'EXPIRED', ARGV[10])
      elseif (f[4] and f[4] ~= ARGV[1] and f[4] ~= ARGV[2]) or is_begun_elsewhere(c, f[7], f[8]) then
        skipped[c.route] = skipped[c.route] + 1
      elseif is_suspect(f[3]) then
        if not head then
          if num_held > 0 then return false end
          return lease(c)
        end
      else
        local shared = ARGV[6] == '' and 0 or num_shared(f[5])
        if not head then
          if ARGV[6] == '' or tonumber(f[6] or '0') >= tonumber(ARGV[8]) then return lease(c) end
          head, best, best_shared = c, c, shared
        elseif shared > best_shared then
          best, best_shared = c, shared
        end
      end
    end
    if best then
      if best ~= head then redis.call('HINCRBY', JOB_PREFIX .. head.id, 'passed', 1) end
      return lease(best)
    end
  until #found == 0
end
for route = 1, num_routes do
  if redis.call('EXISTS', KEYS[route], KEYS[num_routes + route]) == 0 then
    redis.call('SREM', WAITING, ARGV[FIXED + route])
  end
end
return false
