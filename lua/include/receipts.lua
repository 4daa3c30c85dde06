-- Receipts: 16 bytes for each of the last 32 commits, by which a retry is recognised: 8 bytes are the commit's tag, 8
-- bytes its meaning. The newest is last.

-- Compares the number of receipts with the revision. Returns nil if they match, else the rest of a reply.
local function broken_receipts(receipts, revision)
  if #receipts == 16 * math.min(32, tonumber(revision)) then return nil end
  return {'corrupt', 'head', 'its receipts are unreadable'}
end

-- Returns the index at which the receipt with this tag begins; nil if there is none.
local function place_of_receipt(receipts, tag)
  local found = string.find(receipts, tag, 1, true)
  while found and (found - 1) % 16 ~= 0 do found = string.find(receipts, tag, found + 1, true) end
  return found
end

-- Returns the index at which the receipt of the commit `tag` begins, and the revision that the commit made; nil if
-- there is no receipt.
local function find_receipt(receipts, tag, revision)
  local found = place_of_receipt(receipts, tag)
  if not found then return nil end
  return found, add64(revision, string.format('%.0f', 1 - (#receipts - found + 1) / 16))
end

-- Whether `tag` is the tag of the head's last commit.
local function is_last(receipts, tag)
  return string.sub(receipts, -16, -9) == tag
end

-- The field `past` of a head is what `delete` leaves of a session whose id is reusable: `revision epoch receipts`. The
-- next session continues the revisions and the receipts, and its log is a later one, so no late commit or read matches
-- it. It keeps the field.

-- Decodes the field; false without one, nil if it is unreadable.
local function past_of(head)
  local text = redis.call('HGET', head, 'past')
  if not text then return false end
  local revision, epoch, from = string.match(text, '^(%d+) (%d+) ()')
  if not revision or not is_int64(revision) or is_odd(epoch) then return nil end
  return {revision = revision, epoch = epoch + 0, receipts = string.sub(text, from)}
end

-- Whether `revision` is one of the former session's, of which `past` is the record (false for none).
local function is_former(past, revision)
  if not past or revision == '0' then return false end
  return #revision < #past.revision or #revision == #past.revision and revision <= past.revision
end

-- Returns the receipts after one more commit. The oldest of more than 32 is dropped.
local function with_receipt(receipts, tag, meaning)
  return string.sub(receipts, -16 * 31) .. tag .. meaning
end
