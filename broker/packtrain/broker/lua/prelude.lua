-- Shared by the scripts: the loader puts those that one needs above it, and the key names of keys.py in as literals. A
-- function calls only those above it, and a blank line stands between two of them and nowhere else.

-- Server time only: clocks of clients and nodes never decide anything.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- True when this epoch still runs the job. Every late writer is stopped here.
local function is_owner(job, epoch)
  local f = redis.call('HMGET', job, 'epoch', 'state')
  return f[1] == epoch and f[2] == 'RUNNING'
end

local function ready_key(route, lane)
  return READY_PREFIX .. route .. ':' .. string.sub(lane, 1, 1)
end

-- The route and lane that a job waits on; its model's own route stands in no field.
local function place_of(id)
  local f = redis.call('HMGET', JOB_PREFIX .. id, 'route', 'lane', 'model')
  return f[1] or f[3], f[2]
end

local function model_of(route)
  return (string.gsub(route, '@.*', ''))
end

-- Who is ahead of the clock of fair queueing, and the clock itself (member ''): see fairness.py.
local function fair_key(model, lane)
  return FAIR_PREFIX .. model .. ':' .. string.sub(lane, 1, 1)
end

local function queued_key(model, lane)
  return QUEUED_PREFIX .. model .. ':' .. string.sub(lane, 1, 1)
end

-- Count a job of this user that begins to wait; how many he has there now.
local function count_in(model, lane, user)
  local queued = queued_key(model, lane)
  local waiting = redis.call('HINCRBY', queued, user, 1)
  redis.call('PEXPIRE', queued, QUEUED_TTL_MS)
  return waiting
end

-- Count one that waits no more; how many he has left.
local function count_out(model, lane, user)
  local queued = queued_key(model, lane)
  local left = redis.call('HINCRBY', queued, user, -1)
  if left <= 0 then redis.call('HDEL', queued, user) end
  return left
end

-- The start tag of a user's next job in a queue: where his last one finishes, or the clock, which moves on by a hair then.
local function start_tag(model, lane, user, cost, hair)
  local fair = fair_key(model, lane)
  -- Jobs from before there were tags have numbers of this counter instead: tags begin behind them.
  local clock = tonumber(redis.call('ZSCORE', fair, '') or redis.call('GET', ORDER) or '0')
  local order = tonumber(redis.call('ZSCORE', fair, user) or '0')
  if order <= clock then
    order = clock + tonumber(hair)
    redis.call('ZADD', fair, order, '')
  end
  redis.call('ZADD', fair, order + tonumber(cost), user)
  redis.call('PEXPIRE', fair, QUEUED_TTL_MS)
  return order
end

-- Note that a waiting job has further targets.
local function note_movable(id, route, lane, order)
  local movable = MOVABLE_PREFIX .. route .. ':' .. string.sub(lane, 1, 1)
  redis.call('ZADD', movable, order, id)
  redis.call('PEXPIRE', movable, QUEUED_TTL_MS)
end

-- Let a job that waits nowhere wait for another model; its route there. Its cost stands in the record, see submit.lua.
local function enqueue(id, model, suffix, hair)
  local job = JOB_PREFIX .. id
  local lane, user, cost = unpack(redis.call('HMGET', job, 'lane', 'user', 'cost'))
  local order, route = start_tag(model, lane, user, cost, hair), model .. suffix
  count_in(model, lane, user)
  redis.call('HSET', job, 'state', 'QUEUED', 'model', model, 'order', order)
  if route == model then redis.call('HDEL', job, 'route') else redis.call('HSET', job, 'route', route) end
  redis.call('ZADD', ready_key(route, lane), order, id)
  redis.call('SADD', WAITING, route)
  note_movable(id, route, lane, order)
  return route
end

-- Take a job out of the queue that was not served.
local function withdraw(id)
  local route, lane = place_of(id)
  local f = redis.call('HMGET', JOB_PREFIX .. id, 'model', 'user')
  if redis.call('ZREM', ready_key(route, lane), id) == 1 and count_out(f[1], lane, f[2]) <= 0 then
    redis.call('ZREM', fair_key(f[1], lane), f[2])
  end
end

-- Add a chunk to a stream (see chunks.py): reasoning, tool calls and logprobs only where it has any.
local function append(out, index, text, tokens, reasoning, calls, logprobs)
  local fields = {'i', index, 't', text, 'k', tokens}
  for name, value in pairs({r = reasoning, c = calls, l = logprobs}) do
    if value ~= '' then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  redis.call('XADD', out, '*', unpack(fields))
end

-- A job has its first token: keep how long it waited for it, see history.py.
local function note_first(job)
  local now = now_ms()
  if redis.call('HSETNX', job, 'first_token_ms', now) == 0 then return end
  redis.call('XADD', FIRSTS, 'MAXLEN', '~', FIRSTS_MAX, '*', 'ms', now - redis.call('HGET', job, 'submitted_ms'))
  redis.call('PEXPIRE', FIRSTS, FIRSTS_TTL_MS)
end

-- Forget which instance runs the job.
local function unlease(id)
  redis.call('ZREM', LEASES, id)
  local owner = redis.call('HGET', JOB_PREFIX .. id, 'instance')
  if owner then redis.call('SREM', HELD_PREFIX .. owner, id) end
end

-- Put a running job back at its old place in the queue. A deterministic one that has tokens is noted with their class.
local function requeue(id)
  local job = JOB_PREFIX .. id
  local route, lane = place_of(id)
  unlease(id)
  redis.call('HSET', job, 'state', 'QUEUED', 'requeued_ms', now_ms())
  local f = redis.call('HMGET', job, 'order', 'tokens', 'class', 'model', 'user', 'targets')
  redis.call('ZADD', ready_key(route, lane), f[1], id)
  count_in(f[4], lane, f[5])
  redis.call('SADD', WAITING, route)
  if f[6] then note_movable(id, route, lane, f[1]) end
  if f[2] and f[3] then
    redis.call('HSET', BEGUN, id, f[3])
    redis.call('PEXPIRE', BEGUN, QUEUED_TTL_MS)
  end
end

-- The counters of a model and lane, see tally.py.
local function tally_key(model, lane)
  return TALLY_PREFIX .. model .. ':' .. string.sub(lane, 1, 1)
end

-- Count something that befell a job on its way.
local function note(id, what)
  local f = redis.call('HMGET', JOB_PREFIX .. id, 'model', 'lane')
  redis.call('HINCRBY', tally_key(f[1], f[2]), what, 1)
  redis.call('PEXPIRE', tally_key(f[1], f[2]), TALLY_TTL_MS)
end

-- Add what jobs of a user, or of a tag, have used. So many rows are told apart, and all further ones are one.
local function add_use(kind, row, sums)
  local used = USED_PREFIX .. kind
  if redis.call('HINCRBY', used, row .. ' jobs', sums.jobs) == sums.jobs and redis.call('HLEN', used) > 3 * USED_MAX then
    redis.call('HDEL', used, row .. ' jobs')
    row = USED_OTHERS .. string.match(row, ' .*')
    redis.call('HINCRBY', used, row .. ' jobs', sums.jobs)
  end
  for _, what in ipairs({'prompt', 'output'}) do
    if sums[what] > 0 then redis.pcall('HINCRBY', used, row .. ' ' .. what, string.format('%.0f', sums[what])) end
  end
end

-- Add the ends that were noted since the last time to the counters, see tally.py.
local function fold()
  local tallies, uses = {}, {user = {}, tag = {}}
  local function use(kind, row, prompt, output)
    local sums = uses[kind][row] or {jobs = 0, prompt = 0, output = 0}
    uses[kind][row] = sums
    sums.jobs, sums.prompt, sums.output = sums.jobs + 1, sums.prompt + prompt, sums.output + output
  end
  local entries = redis.call('LRANGE', ENDS, 0, TALLY_MOST - 1)
  redis.call('LTRIM', ENDS, #entries, -1)
  for _, entry in ipairs(entries) do
    -- Clients may write here: what makes no sense is passed over.
    local model, lane, user, tag, figures = string.match(entry, '^(%S+) (%S+) (%S+) (%S+) (.*)')
    if model then
      local key = tally_key(model, lane)
      local sums = tallies[key] or {prompt = 0, output = 0}
      tallies[key] = sums
      local prompt, output = sums.prompt, sums.output
      for field, number in string.gmatch(figures, '(%S+) (%d+)') do
        if #number < 15 then sums[field] = (sums[field] or 0) + number end
      end
      prompt, output = sums.prompt - prompt, sums.output - output
      use('user', user .. ' ' .. model, prompt, output)
      if tag ~= '-' then use('tag', tag .. ' ' .. model, prompt, output) end
    end
  end
  for key, sums in pairs(tallies) do
    for field, number in pairs(sums) do
      if number > 0 then redis.pcall('HINCRBY', key, field, string.format('%.0f', number)) end
    end
    redis.call('PEXPIRE', key, TALLY_TTL_MS)
  end
  for kind, rows in pairs(uses) do
    for row, sums in pairs(rows) do add_use(kind, row, sums) end
    redis.call('PEXPIRE', USED_PREFIX .. kind, TALLY_TTL_MS)
  end
end

-- Note a job that ends, with what its instance says of it: 'field number field number ...', see tally.py. Where none
-- says anything, with the tokens that its readers have. Clients cancel jobs, and may do no more with counters than this;
-- returns how many ends wait to be added.
local function count_end(id, state, figures)
  local f = redis.call('HMGET', JOB_PREFIX .. id, 'model', 'lane', 'user', 'tag', 'tokens')
  figures = figures or f[5] and 'output ' .. f[5] or ''
  local entry = table.concat({f[1], f[2], f[3], f[4] or '-', 'end:' .. state, '1', figures}, ' ')
  local noted = redis.call('RPUSH', ENDS, entry)
  if noted == 1 then redis.call('PEXPIRE', ENDS, TALLY_TTL_MS) end
  return noted
end

-- End a job that no instance has for good: state, outcome, the last event of its stream, and a lifetime for what is left.
local function conclude(id, state, outcome)
  local job, out = JOB_PREFIX .. id, OUT_PREFIX .. id
  redis.call('ZREM', DEADLINES, id)
  redis.call('HDEL', MEANT, id)
  redis.call('HDEL', PREFIXES, id)
  redis.call('HDEL', BEGUN, id)
  redis.call('HSET', job, 'state', state, 'outcome', outcome, 'finished_ms', now_ms())
  redis.call('PEXPIRE', job, redis.call('HGET', job, 'keep_ms') or ENDED_TTL_MS)
  redis.call('XADD', out, '*', 'end', state)
  redis.call('PEXPIRE', out, STREAM_ENDED_TTL_MS)
end

-- The same of a job that an instance may have. It is counted, by the figures of who has run it; how many ends wait to be
-- added to the counters.
local function settle(id, state, outcome, figures)
  unlease(id)
  conclude(id, state, outcome)
  return count_end(id, state, figures)
end
