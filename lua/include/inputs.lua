-- Pending inputs: what a user sent and no commit has consumed yet. They are fields of the session's head, so that they
-- expire and end with it:
--   i:<id>   `place ms record`: the number of the input, from 1 in the order of the calls; the time (ms since 1970) at
--            which it was enqueued; the client's record, whose first 16 bytes are its receipt: 8 bytes are the tag of
--            the id, 8 bytes the meaning of the input (see lash_redis/protocol/inputs.py)
--   inputs   `total count bytes receipts`: the inputs that were ever enqueued; those that are pending; the sum of the
--            sizes of their records; 16 bytes for each of the last 128 inputs that commits consumed, the newest last

-- Decodes the field `inputs` (false without one); nil if it is unreadable.
local function read_inputs(text)
  if not text then return {total = 0, count = 0, bytes = 0, receipts = ''} end
  local total, count, bytes, from = string.match(text, '^(%d+) (%d+) (%d+) ()')
  if not total or is_odd(total) or is_odd(count) or is_odd(bytes) then return nil end
  local inputs = {total = total + 0, count = count + 0, bytes = bytes + 0, receipts = string.sub(text, from)}
  return #inputs.receipts == 16 * math.min(128, inputs.total - inputs.count) and inputs or nil
end

local function write_inputs(inputs)
  return string.format('%.0f %.0f %.0f ', inputs.total, inputs.count, inputs.bytes) .. inputs.receipts
end

-- Decodes a pending input: its number and its time as text, and its record; nil if it is unreadable.
local function read_input(text)
  local place, ms, from = string.match(text, '^(%d+) (%d+) ()')
  if not place or is_odd(place) or is_odd(ms) or #text < from + 16 then return nil end
  return place, ms, string.sub(text, from)
end
