-- The ledger: one field of the head for each source and model. Its value is the row's place in the ledger and four
-- 64-bit counters: `order input output cached reasoning`.

-- Returns the new value of a row: `order`, and the counters a to d plus e to h; or nil and the index (from 0) of the
-- counter that would exceed 64 bits.
local function add_counters(order, a, b, c, d, e, f, g, h)
  if #a < 10 and #b < 10 and #c < 10 and #d < 10 and #e < 10 and #f < 10 and #g < 10 and #h < 10 then
    return string.format('%s %d %d %d %d', order, a + e, b + f, c + g, d + h) -- the result of four calls of add64
  end
  local sums, known, added = {order}, {a, b, c, d}, {e, f, g, h}
  for counter = 1, 4 do
    local sum = add64(known[counter], added[counter])
    if not sum then return nil, counter - 1 end
    sums[counter + 1] = sum
  end
  return table.concat(sums, ' ')
end

-- Plans the new ledger rows. Returns a flat list of fields and values, and the number of rows of the ledger afterwards;
-- or nil and the rest of a refusal. ARGV from `names` on has the fields of the `rows`, then four counters for each.
-- `known` has the present values of these fields after its first `skipped` entries.
local function plan_usage(usage, rows, names, known, skipped)
  local fields, counters = {}, names + rows
  for row = 0, rows - 1 do
    local text, order, a, b, c, d = known[skipped + row + 1], usage, '0', '0', '0', '0'
    if text then
      order, a, b, c, d = string.match(text, '^(%d+) (%-?%d+) (%-?%d+) (%-?%d+) (%-?%d+)$')
      if not order or is_odd(order) or not (is_int64(a) and is_int64(b) and is_int64(c) and is_int64(d)) then
        return nil, {'corrupt', 'head', 'a ledger row is unreadable'}
      end
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
