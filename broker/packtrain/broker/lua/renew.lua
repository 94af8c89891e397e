-- Renew the leases of an instance's jobs, and tell it which it has lost and which it should cancel.
-- KEYS[1] leases   zset
-- ARGV[1] lease, ms   ARGV[2], ARGV[3], ...: job id, epoch, job id, epoch ...
-- Returns {id, verdict, id, verdict ...} for those that are not simply renewed: 'lost' | 'cancel'
local deadline = now_ms() + tonumber(ARGV[1])
local news = {}
for i = 2, #ARGV, 2 do
  local id, job = ARGV[i], JOB_PREFIX .. ARGV[i]
  if is_owner(job, ARGV[i + 1]) then
    redis.call('ZADD', KEYS[1], deadline, id)
    if redis.call('HEXISTS', job, 'cancel') == 1 then
      news[#news + 1] = id
      news[#news + 1] = 'cancel'
    end
  else
    news[#news + 1] = id
    news[#news + 1] = 'lost'
  end
end
return news
