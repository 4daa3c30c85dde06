-- 64-bit addition. Lua's numbers are doubles, exact only to 2^53, so larger counters are added as decimal strings, in
-- three limbs of nine digits.

local function limbs(text)
  local sign, digits = string.match(text, '^(-?)(%d+)$')
  digits = string.rep('0', 27 - #digits) .. digits
  local factor = sign == '-' and -1 or 1
  return factor * string.sub(digits, 1, 9), factor * string.sub(digits, 10, 18), factor * string.sub(digits, 19, 27)
end

-- The sum of two decimal integers of at most 19 digits as a decimal string, or nil if it leaves -2^63 .. 2^63-1.
-- Integers of at most nine digits are added as numbers; the limit is nine, because %d takes 31 bits on some machines.
local function add64(a, b)
  if #a < 10 and #b < 10 then return string.format('%d', a + b) end
  local high, middle, low = limbs(a)
  local high_b, middle_b, low_b = limbs(b)
  high, middle, low = high + high_b, middle + middle_b, low + low_b
  local sign, limit = '', '000000009223372036854775807'
  if high < 0 or (high == 0 and (middle < 0 or (middle == 0 and low < 0))) then
    sign, limit = '-', '000000009223372036854775808'
    high, middle, low = -high, -middle, -low
  end
  local carry = math.floor(low / 1e9)
  low, middle = low - carry * 1e9, middle + carry
  carry = math.floor(middle / 1e9)
  middle, high = middle - carry * 1e9, high + carry
  local digits = string.format('%09.0f%09.0f%09.0f', high, middle, low)
  if digits > limit then return nil end
  return sign .. string.match(digits, '^0*(%d+)$')
end
