-- The streams of a session: turns that are being produced, or that ended a short time ago. The hash `streams` has a
-- record for each generation. Its field '' has the owner for whom the first of them was opened, if there is one. The
-- events of a stream are a list of their own. A record has, separated by blanks:
--   state     r running, f finished, x failed
--   last      sequence number of the last event; that of the first one is 1
--   kept      elements of the list: the newest events
--   bytes     sum of these elements
--   deadline  ms since 1970: when a running stream counts as lost without a sign of life, or when it ended
--   keep      ms from the deadline until the stream expires
--   stop      1: a stop was requested
--   token     of the producer, without blanks

-- Decodes a record; nil if it is unreadable. Its state is l if it counts as lost at `now`.
local function read_stream(text, now)
  local state, last, kept, bytes, deadline, keep, stop, token = string.match(text,
    '^([rfx]) (%d+) (%d+) (%d+) (%d+) (%d+) ([01]) (%S+)$')
  if not state or is_odd(last) or is_odd(kept) or is_odd(bytes) or is_odd(deadline) or is_odd(keep) then
    return nil
  end
  if state == 'r' and deadline + 0 <= now then state = 'l' end
  return {
    state = state, last = last + 0, kept = kept + 0, bytes = bytes + 0, deadline = deadline + 0, keep = keep + 0,
    stop = stop, token = token,
  }
end

local function write_stream(s)
  return string.format('%s %.0f %.0f %.0f %.0f %.0f %s %s', s.state, s.last, s.kept, s.bytes, s.deadline, s.keep,
    s.stop, s.token)
end
