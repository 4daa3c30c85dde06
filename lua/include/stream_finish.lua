-- The stream that a commit finishes.

-- The generation and the record of a stream that a commit finishes, and the time at which it then expires. Nil if the
-- commit finishes none: the stream is not running, has another producer, or lacks events. `claim` is the number of its
-- events, the token of its producer and its generation, separated by blanks; '' for none.
local function plan_finish(streams, claim, now)
  local sent, generation = string.match(claim, '^(%d+ %S+) (.+)$')
  local text = sent and redis.pcall('HGET', streams, generation)
  local stream = type(text) == 'string' and read_stream(text, now)
  local is_complete = stream and sent == string.format('%.0f %s', stream.last, stream.token)
  if not is_complete or stream.state ~= 'r' then return nil end
  stream.state, stream.deadline = 'f', now
  return {generation, write_stream(stream), now + stream.keep}
end
