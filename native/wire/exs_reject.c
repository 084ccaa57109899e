// SPDX-License-Identifier: MIT OR Apache-2.0
/* The refusal block: one encoder, one decoder, no state. */
#include "wire/exs_reject.h"

#define BLOCK_VERSION 1

struct reject_wire {
    exsi_be32 magic;
    uint8_t version, code, text_len, zero;
    uint8_t text[EXSI_REJECT_TEXT];
};
_Static_assert(sizeof(struct reject_wire) == EXSI_REJECT_LEN, "docs/wire/exs.md");

void exsi_reject_encode(enum exsi_reject_code code, const char *text, uint8_t out[EXSI_REJECT_LEN])
{
    struct reject_wire w = {.magic = exsi_put32(EXSI_REJECT_MAGIC), .version = BLOCK_VERSION, .code = (uint8_t)code};
    size_t len = strlen(text);
    if (len > EXSI_REJECT_TEXT) len = EXSI_REJECT_TEXT;
    w.text_len = (uint8_t)len;
    memcpy(w.text, text, len);
    memcpy(out, &w, sizeof w);
}

int exsi_reject_decode(const void *data, size_t len, struct exsi_reject *out)
{
    struct reject_wire w;
    struct exsi_cursor c = exsi_cursor(data, len);
    EXSI_TRY(exsi_cursor_take(&c, &w, sizeof w));
    if (exsi_get32(w.magic) != EXSI_REJECT_MAGIC || w.version != BLOCK_VERSION) return -EPROTO;
    if (w.code < EXSI_REJECT_PROTOCOL || w.code > EXSI_REJECT_VERBS || w.text_len > EXSI_REJECT_TEXT) return -EPROTO;
    out->code = (enum exsi_reject_code)w.code;
    for (size_t i = 0; i < w.text_len; i++)
        out->text[i] = w.text[i] >= 0x20 && w.text[i] < 0x7f ? (char)w.text[i] : '?';
    out->text[w.text_len] = '\0';
    return 0;
}

int exsi_reject_errno(enum exsi_reject_code code)
{
    switch (code) {
    case EXSI_REJECT_PROTOCOL:
    case EXSI_REJECT_TYPE: return EPROTO;
    case EXSI_REJECT_BUSY:
    case EXSI_REJECT_VERBS: return ECONNREFUSED;
    case EXSI_REJECT_PATH: return EOPNOTSUPP;
    }
    return ECONNREFUSED;
}
