-- Ms since 1970, by the server's clock: the only one that deadlines are told by.
local function milliseconds()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end
