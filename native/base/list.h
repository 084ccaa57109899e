// SPDX-License-Identifier: MIT OR Apache-2.0
/* Intrusive doubly linked list: the node lives in the object, so linking never allocates.
 * A node that is in no list points at itself, and unlinking it again does nothing. */
#ifndef EXSI_LIST_H
#define EXSI_LIST_H

#include "base/base.h"

struct exsi_list {
    struct exsi_list *next, *prev;
};

static inline void exsi_list_init(struct exsi_list *l)
{
    l->next = l->prev = l;
}
static inline bool exsi_list_empty(const struct exsi_list *l)
{
    return l->next == l;
}

static inline void exsi_list_insert_before(struct exsi_list *at, struct exsi_list *node)
{
    node->prev = at->prev;
    node->next = at;
    at->prev->next = node;
    at->prev = node;
}

static inline void exsi_list_append(struct exsi_list *head, struct exsi_list *node)
{
    exsi_list_insert_before(head, node);
}

static inline void exsi_list_unlink(struct exsi_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    exsi_list_init(node);
}

/* First object of the list, or NULL. */
#define exsi_list_first(head, type, member)                                                                            \
    (exsi_list_empty(head) ? NULL : exsi_container_of((head)->next, type, member))

/* The object behind OBJ, or NULL at the end of the list. */
#define exsi_list_after(head, obj, type, member)                                                                       \
    ((obj)->member.next == (head) ? NULL : exsi_container_of((obj)->member.next, type, member))

#define exsi_list_for(pos, head, type, member)                                                                         \
    for (type *pos = exsi_list_first(head, type, member); pos; pos = exsi_list_after(head, pos, type, member))

/* As exsi_list_for; the body may unlink or free POS (and nothing else of the list). */
#define exsi_list_for_safe(pos, head, type, member)                                                                    \
    for (type *pos = exsi_list_first(head, type, member),                                                              \
              *pos##_next_ = pos ? exsi_list_after(head, pos, type, member) : NULL;                                    \
         pos; pos = pos##_next_, pos##_next_ = pos ? exsi_list_after(head, pos, type, member) : NULL)

#endif
