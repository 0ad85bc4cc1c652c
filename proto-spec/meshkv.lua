-- Wireshark dissector for the peer protocol of meshkv; peer.md beside it is what it follows.
--
--   tshark -X lua_script:proto-spec/meshkv.lua -o tcp.try_heuristic_first:TRUE -r capture.pcap -Y meshkv -V
--
-- Links are recognised by their preamble, whatever their port (hence the option: another protocol may be known for
-- it). Without a preamble, in a capture that began too late, port 7373 is taken for a link; others by "Decode As".
-- The frames of links with a secret are shown as sealed. What peer.md forbids is shown in meshkv.defect, with the
-- reasons that vectors.txt names.

local meshkv = Proto("meshkv", "meshkv peer protocol")

local FRAME_MAX = 1024 * 1024
local PREAMBLE = 16
local SKIPPABLE = 128
-- Of keys, in a comparison.
local GROUPS = 4096

local SEQUENCE_MAX = UInt64.new(0, 0x40000000)
local WORKERS_MAX = 128
local SURPLUS_MAX = 8
local OPENNESS = { [0] = "open", [1] = "settled", [2] = "pulling" }

local TYPES = {
    [0] = "PREAMBLE", [1] = "HELLO", [2] = "WELCOME", [3] = "REFUSE", [4] = "OPS", [5] = "RESTART", [6] = "MARK",
    [7] = "ACK", [8] = "BEAT", [9] = "ECHO", [10] = "PULL", [11] = "PULL_BEGIN", [12] = "RECORDS",
    [13] = "PULL_END", [14] = "LINEAGE", [129] = "DIGEST_ASK", [130] = "DIGEST",
}
local REASONS = {
    "protocol", "lineage", "yield", "removed", "yourself", "clock", "gap", "memory", "full", "leaving", "replaced",
    "silent", "name", "unsettled", "fenced",
}
local PHASES = { [0] = "joining", [1] = "prepared", [2] = "ready", [3] = "left" }
local KINDS = { [0] = "set", [1] = "rm", [2] = "clear" }
local STATUS = { [0] = "go on", [1] = "no version in common", [2] = "a secret on one side only" }

-- Fields. Names end in what they are where that is not their type: _ms, _ns.
local f = {}
local function field(name, make, text, ...)
    f[name] = make("meshkv." .. name, text, ...)
end
local P = ProtoField
field("least", P.uint8, "Least version")
field("most", P.uint8, "Greatest version")
field("secret", P.bool, "Secret")
field("status", P.uint8, "Status", base.DEC, STATUS)
field("zero", P.bytes, "Reserved")
field("length", P.uint32, "Length")
field("type", P.uint8, "Type", base.DEC, TYPES)
field("inc", P.string, "Incarnation")
field("family", P.uint8, "Address family")
field("ip4", P.ipv4, "IP")
field("ip6", P.ipv6, "IP")
field("peer_port", P.uint16, "Peer port")
field("http_port", P.uint16, "HTTP port")
field("workers", P.uint16, "Workers")
field("name", P.string, "Name", base.UNICODE)
field("text_length", P.uint8, "Text length")
field("lineage", P.string, "Lineage")
field("empty", P.bool, "Empty")
field("worker", P.uint16, "Worker")
field("applied", P.uint64, "Applied")
field("joining", P.bool, "Joining")
field("reason", P.uint8, "Reason", base.DEC, REASONS)
field("detail", P.string, "Detail", base.UNICODE)
field("first", P.uint64, "First")
field("count", P.uint32, "Count")
field("ack_now", P.bool, "Acknowledge now")
field("base", P.uint64, "Base")
field("upto", P.uint64, "Up to")
field("seq", P.uint64, "Sequence")
field("closed", P.uint64, "Closed", base.HEX)
field("sent_ns", P.uint64, "Sent at (monotonic ns)")
field("wall_ms", P.uint64, "Wall clock (ms)")
field("jump_ms", P.int64, "Ignored jump of the clock (ms)")
field("counts_you", P.bool, "Counts you")
field("number", P.uint16, "Number of entries")
field("head", P.uint64, "Head")
field("phase", P.uint8, "Phase", base.DEC, PHASES)
field("view", P.uint64, "View", base.HEX)
field("stable", P.uint64, "Stable", base.HEX)
field("floor", P.uint64, "Floor", base.HEX)
field("fenced", P.bool, "Fenced")
field("removed", P.string, "Removed")
field("stranger", P.string, "Of another mesh")
field("id", P.uint32, "Pull or comparison")
field("above", P.uint64, "Above", base.HEX)
field("clear", P.uint64, "Clear", base.HEX)
field("clear_writer", P.string, "Clear's writer")
field("origin", P.string, "Origin")
field("openness", P.uint8, "Openness", base.DEC, OPENNESS)
field("surplus", P.uint64, "Surplus", base.HEX)
field("upto_hlc", P.uint64, "Up to", base.HEX)
field("grown", P.string, "May have grown")
field("writers", P.uint8, "Number of writers")
field("writer", P.string, "Writer")
field("writer_index", P.uint8, "Writer's index")
field("op", P.uint8, "Operation", base.DEC, KINDS, 0x03)
field("op_expires", P.bool, "Expires", 8, nil, 0x04)
field("op_marks", P.uint8, "Marks", base.DEC, nil, 0x18)
field("op_rest", P.uint8, "Must be zero", base.DEC, nil, 0xe0)
field("hlc", P.uint64, "Stamp", base.HEX)
field("hlc_time", P.absolute_time, "Stamp's time", base.UTC)
field("key_length", P.uint16, "Key length")
field("value_length", P.uint16, "Value length")
field("expires_ms", P.uint64, "Expires at (ms)")
field("key", P.string, "Key", base.UNICODE)
field("value", P.string, "Value", base.UNICODE)
field("until_ms", P.uint64, "Valid until (ms)")
field("digest_key", P.string, "Key of the hash")
field("group", P.uint16, "Group")
field("last", P.bool, "Last piece")
field("valid", P.bool, "Valid")
field("sum", P.string, "Sum")
field("records", P.uint32, "Records")
field("key_hash", P.uint64, "Hash of the key", base.HEX)
field("content", P.uint64, "Hash of the record", base.HEX)
field("unknown", P.bytes, "Of an unknown type, skipped")
field("sealed", P.bytes, "Sealed")
field("noise_length", P.uint16, "Noise message length")
field("handshake", P.bytes, "Noise handshake")
field("defect", P.string, "Defect")
meshkv.fields = f

local defect_expert = ProtoExpert.new("meshkv.malformed", "Not a frame", expert.group.MALFORMED, expert.severity.ERROR)
meshkv.experts = { defect_expert }

local stream_field = Field.new("tcp.stream")

-- Streams with a secret: for each direction, where the handshake message is, the first behind the preamble.
local sealed = {}
function meshkv.init()
    sealed = {}
end

-- A defect is thrown as a table, so that a mistake of this script stays one that Wireshark reports.
local function defect(reason)
    error({ reason = reason })
end

-- Takes fields off the front of a buffer, each into the tree.
local Reader = {}
Reader.__index = Reader

local function reader(tvb, from, upto, tree)
    return setmetatable({ tvb = tvb, at = from, upto = upto, tree = tree }, Reader)
end

function Reader:left()
    return self.upto - self.at
end

function Reader:range(count)
    if count > self:left() then
        defect("truncated")
    end
    self.at = self.at + count
    -- A range of nothing may not be asked for at the very end.
    return count > 0 and self.tvb(self.at - count, count) or nil
end

-- Everything added until `up` lies below a new line.
function Reader:down(text)
    local tree = self.tree
    self.tree = tree:add(meshkv, self.tvb(self.at, self:left()), text)
    return { tree = tree, from = self.at }
end

function Reader:up(mark, more)
    if more then
        self.tree:append_text(more)
    end
    self.tree:set_len(self.at - mark.from)
    self.tree = mark.tree
end

function Reader:number(name, bytes)
    local range = self:range(bytes)
    self.tree:add_le(f[name], range)
    if bytes == 8 then
        return range:le_uint64()
    end
    return range:le_uint()
end

-- A number of an operation.
function Reader:sequence(name)
    local seq = self:number(name, 8)
    if seq > SEQUENCE_MAX then
        defect("sequence")
    end
    return seq
end

function Reader:flag(name)
    local value = self:number(name, 1)
    if value > 1 then
        defect("flag")
    end
    return value == 1
end

function Reader:wide(name)
    local range = self:range(16)
    local digits = {}
    for i = 15, 0, -1 do
        digits[#digits + 1] = string.format("%02x", range(i, 1):uint())
    end
    local text = table.concat(digits)
    self.tree:add(f[name], range, text)
    return text
end

-- A hybrid time: 48 bits of milliseconds above 16 bits of counter.
function Reader:hlc(name)
    local range = self:range(8)
    local item = self.tree:add_le(f[name], range)
    local ms = range(2, 6):le_uint64()
    item:append_text(string.format(" (%s+%d)", tostring(ms), range(0, 2):le_uint()))
    return range:le_uint64(), ms, range
end

-- The number of bytes of the character that begins at `at` in a UTF-8 text, or nil.
local function character(text, at)
    local a, b = text:byte(at, at + 1)
    if a < 0x80 then
        return 1
    end
    local count, least, most = nil, 0x80, 0xbf
    if a >= 0xc2 and a <= 0xdf then
        count = 2
    elseif a >= 0xe0 and a <= 0xef then
        count = 3
        least = a == 0xe0 and 0xa0 or least
        most = a == 0xed and 0x9f or most
    elseif a >= 0xf0 and a <= 0xf4 then
        count = 4
        least = a == 0xf0 and 0x90 or least
        most = a == 0xf4 and 0x8f or most
    end
    if not count or not b or b < least or b > most then
        return nil
    end
    for i = at + 2, at + count - 1 do
        local c = text:byte(i)
        if not c or c < 0x80 or c > 0xbf then
            return nil
        end
    end
    return count
end

local function is_utf8(text)
    if not text:find("[\128-\255]") then
        return true
    end
    local at = 1
    while at <= #text do
        local count = character(text, at)
        if not count then
            return false
        end
        at = at + count
    end
    return true
end

function Reader:utf8(name, count, reason)
    local range = self:range(count)
    if not range then
        return ""
    end
    local bytes = range:bytes():raw()
    if not is_utf8(bytes) then
        defect(reason)
    end
    -- Named, as the packet itself would be cut at a zero.
    self.tree:add(f[name], range, range:string(ENC_UTF_8))
    return bytes
end

function Reader:text(name)
    return self:utf8(name, self:number("text_length", 1), name)
end

function Reader:bounded(name, bytes, most, reason)
    local count = self:number(name, bytes)
    if count > most then
        defect(reason)
    end
    return count
end

local function member(r)
    local mark = r:down("Member")
    local inc = r:wide("inc")
    local family = r:number("family", 1)
    if family == 4 then
        r:number_ip4()
    elseif family == 6 then
        r:number_ip6()
    else
        defect("address")
    end
    r:number("peer_port", 2)
    r:number("http_port", 2)
    local workers = r:number("workers", 2)
    local name = r:text("name")
    if inc == string.rep("0", 32) then
        defect("incarnation")
    end
    if workers == 0 or workers > WORKERS_MAX then
        defect("workers")
    end
    r:up(mark, ": " .. name)
    return name
end

-- Addresses are numbers, and so little-endian as well.
function Reader:number_ip4()
    local range = self:range(4)
    self.tree:add(f.ip4, range, range:le_ipv4())
end

function Reader:number_ip6()
    local range = self:range(16)
    local digits = {}
    for i = 15, 0, -1 do
        digits[#digits + 1] = string.format("%02x", range(i, 1):uint()) .. (i % 2 == 0 and i > 0 and ":" or "")
    end
    self.tree:add(f.ip6, range, Address.ipv6(table.concat(digits)))
end

local function held(r, worker)
    local mark = r:down("Worker " .. worker)
    local before = r:sequence("applied")
    r:hlc("closed")
    for _ = 1, r:bounded("number", 2, 1024, "ranges") do
        local base, upto = r:sequence("base"), r:sequence("upto")
        if base <= before or upto <= base then
            defect("ranges")
        end
        before = upto
    end
    r:up(mark)
end

local function vectors(r)
    for _ = 1, r:bounded("number", 2, 128 + 256, "vectors") do
        local mark = r:down("Vector")
        local origin = r:wide("origin")
        if r:number("openness", 1) > 2 then
            defect("openness")
        end
        for worker = 1, r:bounded("workers", 2, WORKERS_MAX, "workers") do
            held(r, worker - 1)
        end
        local before, ascends = nil, true
        for _ = 1, r:bounded("number", 2, SURPLUS_MAX, "surplus") do
            local id = r:number("surplus", 8)
            ascends = ascends and (before == nil or before < id)
            before = id
            r:hlc("upto_hlc")
        end
        if not ascends then
            defect("surplus")
        end
        r:up(mark, ": " .. origin)
    end
end

local function operation(r, label, in_records)
    local mark = r:down(label)
    if in_records then
        local writers = in_records
        if r:number("writer_index", 1) >= writers then
            defect("writer")
        end
    end
    local head = r:range(1)
    local bits = head:uint()
    for _, name in ipairs({ "op", "op_expires", "op_marks", "op_rest" }) do
        r.tree:add(f[name], head)
    end
    if bits >= 32 then
        defect("operation flags")
    end
    local hlc, ms, range = r:hlc("hlc")
    local seconds = (ms / UInt64(1000)):tonumber()
    r.tree:add(f.hlc_time, range(2, 6), NSTime.new(seconds, (ms % UInt64(1000)):tonumber() * 1000000))
    local key, value = r:number("key_length", 2), r:number("value_length", 2)
    local expires = bits % 8 >= 4
    local expires_ms = expires and r:number("expires_ms", 8)
    local kind = bits % 4
    local fits
    if kind == 0 then
        fits = key > 0 and (not expires or expires_ms > UInt64(0))
    elseif kind == 1 then
        fits = key > 0 and value == 0 and not expires
    elseif kind == 2 then
        fits = key == 0 and value == 0 and not expires
    else
        defect("operation kind")
    end
    if not fits or key > 4096 or value > 16384 or hlc == UInt64(0) then
        defect("operation")
    end
    local key_text = r:utf8("key", key, "text")
    r:utf8("value", value, "text")
    if in_records and kind == 2 then
        defect("operation kind")
    end
    r:up(mark, ": " .. KINDS[kind] .. " " .. key_text)
end

-- By type: reads the fields, returns what the summary says beyond the name.
local BODY = {
    [1] = function(r)
        local name = member(r)
        r:wide("lineage")
        r:flag("empty")
        return name .. " worker " .. r:number("worker", 2)
    end,
    [2] = function(r)
        local name = member(r)
        r:wide("lineage")
        r:flag("empty")
        local applied = r:sequence("applied")
        r:flag("joining")
        return name .. " applied " .. tostring(applied)
    end,
    [3] = function(r)
        local reason = r:number("reason", 1)
        if not REASONS[reason] then
            defect("reason")
        end
        r:text("detail")
        return REASONS[reason]
    end,
    [4] = function(r)
        local first, count = r:sequence("first"), r:number("count", 4)
        r:flag("ack_now")
        if first == UInt64(0) or count == 0 or count > FRAME_MAX / 13 then
            defect("first or count")
        end
        for n = 0, count - 1 do
            operation(r, "Operation " .. tostring(first + UInt64(n)))
        end
        return tostring(first) .. " to " .. tostring(first + UInt64(count - 1))
    end,
    [5] = function(r)
        return tostring(r:sequence("base"))
    end,
    [6] = function(r)
        local seq = r:sequence("seq")
        r:hlc("closed")
        return tostring(seq)
    end,
    [7] = function(r)
        local applied = r:sequence("applied")
        r:sequence("base")
        r:sequence("upto")
        return tostring(applied)
    end,
    [8] = function(r)
        r:number("sent_ns", 8)
        local phase = r:number("phase", 1)
        if phase > 3 then
            defect("phase")
        end
        r:number("view", 8)
        r:hlc("stable")
        r:hlc("floor")
        for _ = 1, r:bounded("number", 2, 128, "members") do
            member(r)
            r:flag("fenced")
        end
        for _ = 1, r:bounded("number", 2, 256, "removed") do
            r:wide("removed")
        end
        for _ = 1, r:bounded("number", 2, 128, "strangers") do
            r:wide("stranger")
        end
        vectors(r)
        return PHASES[phase]
    end,
    [9] = function(r)
        r:number("sent_ns", 8)
        r:number("wall_ms", 8)
        r:number("jump_ms", 8)
        r:flag("counts_you")
        for _ = 1, r:bounded("number", 2, WORKERS_MAX, "workers") do
            r:sequence("head")
        end
    end,
    [10] = function(r)
        local id = r:number("id", 4)
        r:hlc("above")
        return id
    end,
    [11] = function(r)
        local id = r:number("id", 4)
        r:wide("lineage")
        r:hlc("floor")
        r:hlc("stable")
        r:hlc("clear")
        r:wide("clear_writer")
        vectors(r)
        return id
    end,
    [12] = function(r)
        local id, writers = r:number("id", 4), r:number("writers", 1)
        for _ = 1, writers do
            r:wide("writer")
        end
        local count = 0
        while r:left() > 0 do
            count = count + 1
            operation(r, "Record", writers)
        end
        return id .. ": " .. count
    end,
    [13] = function(r)
        local id = r:number("id", 4)
        for _ = 1, r:bounded("number", 2, 128 + 256, "grown") do
            r:wide("grown")
        end
        return id
    end,
    [14] = function(r)
        return r:wide("lineage")
    end,
    [129] = function(r)
        local id = r:number("id", 4)
        r:number("view", 8)
        r:hlc("floor")
        r:number("until_ms", 8)
        r:wide("digest_key")
        local count, before, ascends = r:bounded("number", 2, 16, "groups"), -1, true
        for _ = 1, count do
            local group = r:number("group", 2)
            ascends = ascends and group > before
            before = group
        end
        if not ascends or before >= GROUPS then
            defect("groups")
        end
        return id .. (count > 0 and ": keys of " .. count .. " groups" or ": sums")
    end,
    [130] = function(r)
        local id = r:number("id", 4)
        r:hlc("clear")
        r:flag("last")
        r:flag("valid")
        local sums = r:number("number", 2)
        if sums ~= 0 and sums ~= GROUPS then
            defect("sums")
        end
        for _ = 1, sums do
            r:wide("sum")
            r:number("records", 4)
        end
        local keys = r:bounded("number", 2, 2048, "entries")
        for _ = 1, keys do
            r:number("key_hash", 8)
            r:hlc("hlc")
            r:number("content", 8)
        end
        return id .. ": " .. (sums > 0 and "sums" or keys .. " keys")
    end,
}

local function is_preamble(tvb, at)
    return tvb:len() - at >= 6 and tvb(at, 6):string() == "meshkv"
end

local function note(pinfo, text)
    local before = tostring(pinfo.cols.info)
    pinfo.cols.info = pinfo.private.meshkv and before .. ", " .. text or text
    pinfo.private.meshkv = "1"
end

local function preamble(tvb, at, pinfo, tree)
    local item = tree:add(meshkv, tvb(at, PREAMBLE), "meshkv PREAMBLE")
    item:add(f.least, tvb(at + 6, 1))
    item:add(f.most, tvb(at + 7, 1))
    item:add(f.secret, tvb(at + 8, 1))
    item:add(f.status, tvb(at + 9, 1))
    item:add(f.zero, tvb(at + 10, 6))
    note(pinfo, "PREAMBLE")
    if tvb(at + 8, 1):uint() == 1 then
        local stream = stream_field().value
        sealed[stream] = sealed[stream] or {}
    end
end

local function frame(tvb, at, size, pinfo, tree)
    local number = tvb(at + 4, 1):uint()
    local name = TYPES[number] or "UNKNOWN " .. number
    local item = tree:add(meshkv, tvb(at, size), "meshkv " .. name)
    item:add_le(f.length, tvb(at, 4))
    item:add(f.type, tvb(at + 4, 1))
    local r = reader(tvb, at + 5, at + size, item)
    local fine, more = pcall(function()
        if BODY[number] then
            local more = BODY[number](r)
            if r:left() > 0 then
                defect("trailing")
            end
            return more
        elseif number >= SKIPPABLE then
            local rest = r:range(r:left())
            if rest then
                item:add(f.unknown, rest)
            end
        else
            defect("type")
        end
    end)
    if fine then
        more = more and name .. " " .. more or name
    elseif type(more) == "table" then
        item:add(f.defect, tvb(at, size), more.reason)
        item:add_proto_expert_info(defect_expert, more.reason)
        more = name .. " [" .. more.reason .. "]"
    else
        error(more, 0)
    end
    item:set_text("meshkv " .. more)
    note(pinfo, more)
end

local function noise(tvb, at, size, pinfo, tree, stream)
    -- Named by where it was first seen: a file is gone through more than once.
    local direction = tostring(pinfo.src) .. ":" .. pinfo.src_port
    local place = pinfo.number .. ":" .. at
    sealed[stream][direction] = sealed[stream][direction] or place
    local is_handshake = sealed[stream][direction] == place
    local text = is_handshake and "Noise handshake" or "sealed"
    local item = tree:add(meshkv, tvb(at, size), "meshkv " .. text)
    item:add_le(f.noise_length, tvb(at, 2))
    if size > 2 then
        item:add(is_handshake and f.handshake or f.sealed, tvb(at + 2, size - 2))
    end
    note(pinfo, text)
end

-- The size of what begins at `at`: nil if too little has come to tell.
local function size_of(tvb, at, stream)
    local left = tvb:len() - at
    if is_preamble(tvb, at) then
        return PREAMBLE
    elseif left < 6 and tvb(at, left):string() == ("meshkv"):sub(1, left) then
        return nil
    elseif sealed[stream] then
        return left >= 2 and 2 + tvb(at, 2):le_uint() or nil
    elseif left < 4 then
        return nil
    end
    local length = tvb(at, 4):le_uint()
    return length >= 1 and length <= FRAME_MAX and 4 + length or 0
end

function meshkv.dissector(tvb, pinfo, root)
    -- Cut off by the capture itself: there is nothing to wait for.
    if tvb:len() ~= tvb:reported_len() then
        return 0
    end
    pinfo.cols.protocol = "meshkv"
    pinfo.private.meshkv = nil
    local stream = stream_field().value
    local tree = root:add(meshkv, tvb())
    local at = 0
    while at < tvb:len() do
        local size = size_of(tvb, at, stream)
        if size == 0 then
            -- Nothing behind this can be understood.
            local item = tree:add(f.defect, tvb(at), "length")
            item:add_proto_expert_info(defect_expert, "length")
            note(pinfo, "[length]")
            return tvb:len()
        elseif not size or size > tvb:len() - at then
            pinfo.desegment_offset = at
            pinfo.desegment_len = size and size - (tvb:len() - at) or DESEGMENT_ONE_MORE_SEGMENT
            return tvb:len()
        elseif is_preamble(tvb, at) then
            preamble(tvb, at, pinfo, tree)
        elseif sealed[stream] then
            noise(tvb, at, size, pinfo, tree, stream)
        else
            frame(tvb, at, size, pinfo, tree)
        end
        at = at + size
    end
    return tvb:len()
end

meshkv:register_heuristic("tcp", function(tvb, pinfo, root)
    if not is_preamble(tvb, 0) then
        return false
    end
    pinfo.conversation = meshkv
    meshkv.dissector(tvb, pinfo, root)
    return true
end)
DissectorTable.get("tcp.port"):add(7373, meshkv)
