-- Bring the counters up to date, see tally.py. Whoever reads them does that first.
-- KEYS[1] ends that were noted since the last time   list
-- ARGV[1] fewer than so many are left for later
-- Returns how many there were
local noted = redis.call('LLEN', KEYS[1])
if noted >= tonumber(ARGV[1]) then fold() end
return noted
