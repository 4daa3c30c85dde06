-- Stored numbers: decimal digits as scripts write them, without sign, leading zero or blank, and of at most 15 digits,
-- so that a double is exact. lash_redis/protocol/numbers.py accepts the same texts.

-- Whether a text of digits is a number in another form: with a leading zero, or of more than 15 digits.
local function is_odd(digits)
  return #digits > 15 or digits < '1' and digits ~= '0'
end

local function is_whole(text)
  return string.find(text, '^%d+$') ~= nil and not is_odd(text)
end

-- Whether a text is an integer from -2^63 to 2^63-1. The text has digits, and perhaps a minus sign before them.
local function is_int64(text)
  if #text < 16 and text >= '1' or text == '0' then return true end
  local sign, digits = string.match(text, '^(-?)([1-9]%d*)$')
  if not digits then return false end
  return #digits < 19 or #digits == 19 and digits <= '922337203685477580' .. (sign == '' and '7' or '8')
end

-- Decodes an element of `jumps`: the position of a node and that of its parent, -1 for none; nil if it is unreadable.
local function read_jump(element)
  local position, parent = string.match(element, '^(%d+):(%-?%d+)$')
  if not position or is_odd(position) or parent ~= '-1' and not is_whole(parent) then return nil end
  return tonumber(position), tonumber(parent)
end
