// The cells that exist: the list that everything else reads. Those of the first have fused kernels for the activations
// that nearly everybody uses beside the general ones that all have.
#pragma once

#include "gru.hpp"
#include "indrnn.hpp"
#include "lstm.hpp"
#include "simple_rnn.hpp"

#define FASTRNN_FOR_EACH_FUSED_CELL(DO) \
  DO(simple_rnn, SimpleRnn)             \
  DO(lstm, Lstm)                        \
  DO(gru, Gru)                          \
  DO(gru_reset_before, GruResetBefore)

#define FASTRNN_FOR_EACH_CELL(DO)                                         \
  FASTRNN_FOR_EACH_FUSED_CELL(DO)                                         \
  DO(lstm_peephole, LstmPeephole)                                         \
  DO(lstm_nig, LstmNig)                                                   \
  DO(lstm_nig_peephole, LstmNigPeephole)                                  \
  DO(lstm_nfg, LstmNfg)                                                   \
  DO(lstm_nfg_peephole, LstmNfgPeephole)                                  \
  DO(lstm_nog, LstmNog)                                                   \
  DO(lstm_nog_peephole, LstmNogPeephole)                                  \
  DO(lstm_cifg, LstmCifg)                                                 \
  DO(lstm_cifg_peephole, LstmCifgPeephole)                                \
  DO(lstm_projected, LstmProjected)                                       \
  DO(lstm_projected_peephole, LstmProjectedPeephole)                      \
  DO(lstm_fgr, LstmFgr)                                                   \
  DO(lstm_fgr_peephole, LstmFgrPeephole)                                  \
  DO(lstm_normalized, LstmNormalized)                                     \
  DO(lstm_peephole_normalized, LstmPeepholeNormalized)                    \
  DO(lstm_nig_normalized, LstmNigNormalized)                              \
  DO(lstm_nig_peephole_normalized, LstmNigPeepholeNormalized)             \
  DO(lstm_nfg_normalized, LstmNfgNormalized)                              \
  DO(lstm_nfg_peephole_normalized, LstmNfgPeepholeNormalized)             \
  DO(lstm_nog_normalized, LstmNogNormalized)                              \
  DO(lstm_nog_peephole_normalized, LstmNogPeepholeNormalized)             \
  DO(lstm_cifg_normalized, LstmCifgNormalized)                            \
  DO(lstm_cifg_peephole_normalized, LstmCifgPeepholeNormalized)           \
  DO(lstm_projected_normalized, LstmProjectedNormalized)                  \
  DO(lstm_projected_peephole_normalized, LstmProjectedPeepholeNormalized) \
  DO(indrnn, IndRnn)
