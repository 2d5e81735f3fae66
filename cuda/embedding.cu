// Rows of a table by token id. A block takes 8 numbers a thread of one token's row, so that a decode step's one row is all in
// flight at once.
#include "rows.cuh"

using Table = DtypeOf<TABLE>::type;
using Output = DtypeOf<OUTPUT>::type;

struct EmbeddingArgs {
    const u32 *ids;      // [T]
    const Table *table;  // [V, K]
    Output *out;         // [T, K]
    u32 vocabulary;      // V
    u32 channels;        // K
};

// out[t] = table[ids[t]]; zeros for an id outside the table, which is never read there.
KERNEL(embedding, EmbeddingArgs, 128, 8) {
    const u32 id = args.ids[block_x()];
    const bool inside = id < args.vocabulary;
    const Table *from = args.table + static_cast<u64>(inside ? id : 0) * args.channels;
    Output *to = args.out + static_cast<u64>(block_x()) * args.channels;
    const u32 first = 8 * block_y() * block_threads();
    // Rows that start at a multiple of 16 bytes go eight numbers at a time.
    if (args.channels % 8 == 0) {
        const u32 i = first + 8 * thread_index();
        if (i >= args.channels) return;
        f32 v[8] = {};
        if (inside) load_row_8(v, from + i);
        store_row_8(to + i, v);
        return;
    }
    const u32 end = smaller(first + 8 * block_threads(), args.channels);
    for (u32 i = first + thread_index(); i < end; i += block_threads()) {
        to[i] = from_f32<Output>(inside ? to_f32(from[i]) : 0.0f);
    }
}
