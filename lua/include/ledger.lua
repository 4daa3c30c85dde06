-- The ledger: a field of the head for each source and model, with its place in the ledger and four 64-bit counters:
-- `order input output cached reasoning`.

-- The new value of a row: `order`, and the four counters a to d with e to h added; or nil and the number (from 0) of
-- the counter that would leave 64 bits.
local function add_counters(order, a, b, c, d, e, f, g, h)
  if #a < 10 and #b < 10 and #c < 10 and #d < 10 and #e < 10 and #f < 10 and #g < 10 and #h < 10 then
    return string.format('%s %d %d %d %d', order, a + e, b + f, c + g, d + h) -- what add64 gives, four at once
  end
  local sums, known, added = {order}, {a, b, c, d}, {e, f, g, h}
  for counter = 1, 4 do
    local sum = #known[counter] < 21 and add64(known[counter], added[counter])
    if not sum then return nil, counter - 1 end
    sums[counter + 1] = sum
  end
  return table.concat(sums, ' ')
end

-- The fields and values that add usage to the ledger, a flat list, and how many rows it has then; or nil and the rest
-- of a refusal. In ARGV from `names` on stand the fields of the `rows`, then four counters for each. What the head has
-- in these fields stands in `known`, behind its first `skipped` values.
local function plan_usage(usage, rows, names, known, skipped)
  local fields, counters = {}, names + rows
  for row = 0, rows - 1 do
    local text, order, a, b, c, d = known[skipped + row + 1], usage, '0', '0', '0', '0'
    if text then
      order, a, b, c, d = string.match(text, '^(%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$')
      if not order then return nil, {'corrupt', 'head', 'a ledger row is unreadable'} end
    else
      usage = usage + 1
    end
    local at = counters + 4 * row
    local value, counter = add_counters(order, a, b, c, d, ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    if not value then return nil, {'overflow', row, counter} end
    fields[2 * row + 1], fields[2 * row + 2] = ARGV[names + row], value
  end
  return fields, usage
end
