-- Give a running job back to the queue without counting an attempt (drain, unload), if this epoch still owns it.
-- KEYS[1] job record   hash
-- ARGV[1] job id   ARGV[2] epoch   ARGV[3] outcome if a client had asked to cancel (JSON)
-- Returns 1 when it was given back or cancelled, 0 when the job was lost to this epoch
if not is_owner(KEYS[1], ARGV[2]) then return 0 end
if redis.call('HEXISTS', KEYS[1], 'cancel') == 1 then
  settle(ARGV[1], 'CANCELLED', ARGV[3])
else
  note(ARGV[1], 'released')
  requeue(ARGV[1])
end
return 1
