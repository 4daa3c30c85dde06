-- The sum of a log, as lash_redis/protocol/sums.py defines it. All numbers stay below 2^53, so doubles are exact.

-- Returns `plain` (below 2^32) times `factor` (below 2^36), modulo 2^32.
local function scaled(plain, factor)
  local rest = plain % 65536
  return ((plain - rest) / 65536 * factor % 65536 * 65536 + rest * factor) % 4294967296
end

-- Adds the nodes of `run`, from position `base` on, to a sum, and subtracts those that it drops. Returns both halves.
local function summed(high, low, run, base)
  local run_high, run_low, plain_high, plain_low, less_high, less_low =
    string.match(run, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return (high - less_high + run_high + scaled(plain_high + 0, 2 * base)) % 4294967296,
    (low - less_low + run_low + scaled(plain_low + 0, 2 * base)) % 4294967296
end

-- Encodes a number below 2^32 as four bytes, big-endian.
local function in_bytes(number)
  return string.char(math.floor(number / 16777216), math.floor(number / 65536) % 256, math.floor(number / 256) % 256,
    number % 256)
end
