-- Ms since 1970 by the server's clock. No other clock is used for deadlines.
local function milliseconds()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end
