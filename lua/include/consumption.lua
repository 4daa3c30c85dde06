-- The inputs that a commit consumes (see inputs.lua).

-- Plans the consumption of the inputs whose fields are the last `count` of ARGV. Returns these fields, and adds the new
-- value of `inputs` to `fields`, a flat list of fields and values; or nil and the rest of a refusal.
local function plan_consumption(head, count, fields)
  if count == 0 then return {} end
  local names = {unpack(ARGV, #ARGV - count + 1)}
  local stored = redis.call('HMGET', head, 'inputs', unpack(names))
  local inputs, receipts = read_inputs(stored[1]), {}
  if not inputs then return nil, {'corrupt', 'head', 'its account of pending inputs is unreadable'} end
  for index = 1, count do
    local text = stored[index + 1]
    if not text then return nil, {'unpending', index - 1} end
    local place, _, record = read_input(text)
    if not place then return nil, {'corrupt', 'head', 'a pending input is unreadable'} end
    receipts[index] = string.sub(record, 1, 16)
    inputs.bytes = inputs.bytes - #record
  end
  inputs.count = inputs.count - count
  if inputs.count < 0 or inputs.bytes < 0 then
    return nil, {'corrupt', 'head', 'it has more pending inputs than it counts'}
  end
  inputs.receipts = string.sub(inputs.receipts .. table.concat(receipts), -16 * 128)
  fields[#fields + 1], fields[#fields + 2] = 'inputs', write_inputs(inputs)
  return names
end
