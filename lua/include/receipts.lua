-- Receipts: what the last 32 commits leave behind for their retries, 16 bytes each: 8 that say which commit it was (its
-- tag), 8 that say what it meant. The newest stands last.

-- Nil where the head keeps as many receipts as its revision asks for, else the rest of a reply.
local function broken_receipts(receipts, revision)
  if #receipts == 16 * math.min(32, tonumber(revision)) then return nil end
  return {'corrupt', 'head', 'its receipts are unreadable'}
end

-- Where the receipt of the commit `tag` begins, and the revision that commit made; nil where there is none.
local function find_receipt(receipts, tag, revision)
  local found = string.find(receipts, tag, 1, true)
  while found and (found - 1) % 16 ~= 0 do found = string.find(receipts, tag, found + 1, true) end
  if not found then return nil end
  return found, add64(revision, string.format('%.0f', 1 - (#receipts - found + 1) / 16))
end

-- Whether the head's last commit is the one of `tag`.
local function is_last(receipts, tag)
  return string.sub(receipts, -16, -9) == tag
end

-- The receipts after one commit more.
local function with_receipt(receipts, tag, meaning)
  return string.sub(receipts, -16 * 31) .. tag .. meaning
end
